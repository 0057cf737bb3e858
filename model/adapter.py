"""The learnable queries and the Q-Former between multimodal language model and video transformer."""

from __future__ import annotations

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn


class QueryAdapter(ModelMixin, ConfigMixin):
    """Turns what the MLLM says at its query tokens into the text condition of a video transformer.

    Holds both ends of the bridge: ``queries``, the embeddings that stand in the MLLM's input at the query tokens of
    every shot, and a Q-Former (BLIP-2's) whose ``condition_length`` output tokens read the MLLM's last hidden states
    there by cross-attention and are projected to the width of the T5 features they replace (paper: 64 queries,
    12 layers, 226 x 4096).

    Args:
        num_queries: query tokens a shot.
        mllm_hidden_size: width of the MLLM's embeddings and last hidden states.
        condition_length: tokens of the condition; a CogVideoX with sin-cos positions takes no other number than its
            ``max_text_seq_length``.
        condition_size: width of the condition, the transformer's ``text_embed_dim``.
        hidden_size: width of the Q-Former.
        num_layers: its blocks.
        num_heads: its attention heads.
        intermediate_size: width inside its feed-forward layers.
        cross_attention_frequency: every how many blocks it reads the MLLM states (BLIP-2: 2).
    """

    @register_to_config
    def __init__(
        self,
        num_queries: int = 64,
        mllm_hidden_size: int = 4096,
        condition_length: int = 226,
        condition_size: int = 4096,
        hidden_size: int = 768,
        num_layers: int = 12,
        num_heads: int = 12,
        intermediate_size: int = 3072,
        cross_attention_frequency: int = 2,
    ) -> None:
        super().__init__()
        from transformers import Blip2QFormerConfig, Blip2QFormerModel

        # A module, not a bare parameter: calling it is what makes parameter-sharding wrappers gather its rows.
        self.queries = nn.Embedding(num_queries, mllm_hidden_size)
        nn.init.normal_(self.queries.weight, std=0.02)
        self.output_queries = nn.Parameter(torch.randn(condition_length, hidden_size) * 0.02)
        self.norm_in = nn.LayerNorm(mllm_hidden_size)  # hidden states of large language models have huge outliers
        self.qformer = Blip2QFormerModel(
            Blip2QFormerConfig(
                hidden_size=hidden_size,
                num_hidden_layers=num_layers,
                num_attention_heads=num_heads,
                intermediate_size=intermediate_size,
                encoder_hidden_size=mllm_hidden_size,
                cross_attention_frequency=cross_attention_frequency,
                use_qformer_text_input=False,
                hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0,
            )
        )
        self.proj_out = nn.Linear(hidden_size, condition_size)

    def query_embeddings(self) -> Tensor:
        """The learnable queries [num_queries, mllm_hidden_size] that stand in the MLLM's input."""
        return self.queries(torch.arange(self.queries.num_embeddings, device=self.queries.weight.device))

    def forward(self, states: Tensor) -> Tensor:
        """Maps query states to a condition.

        Args:
            states: [N, num_queries, mllm_hidden_size], the MLLM's last hidden states at one shot's query tokens.

        Returns:
            [N, condition_length, condition_size] in the adapter's dtype.
        """
        states = self.norm_in(states.to(self.norm_in.weight.dtype))
        queries = self.output_queries.expand(len(states), -1, -1)
        return self.proj_out(self.qformer(query_embeds=queries, encoder_hidden_states=states).last_hidden_state)
