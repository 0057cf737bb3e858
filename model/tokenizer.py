"""Tokenizers: the reserved query tokens, and a small byte-level one for models with random weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PAD, EOS = "<|endoftext|>", "</s>"
VISION_START, VISION_END, IMAGE_PAD = "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"

# Words of film description, so that the merges learned suit captions; byte-level, so any other text encodes as well.
_TEXT = """
A small fox stands at the edge of the forest and looks up at the moon. The girl in the red coat runs across the bridge
while snow is falling on the town. An old man sits at the table, opens a letter, and smiles. The camera pans slowly from
left to right over the green hills, then moves closer to the house by the river. Inside the room it is dark; a warm
light comes through the window. The robot lifts its arm, turns around, and walks away along the empty street. Two
children are playing with a blue ball in the garden. The rabbit jumps over the stone and lands in the grass. The bird
flies above the sea towards the sun. In the background there are tall trees, white clouds, and a wooden fence. The cat
watches the mouse from behind the chair. The young knight draws a sword in front of the castle gate. She is surprised,
her eyes wide, her hair moving in the wind. He is angry and points at the door. Close-up of the face. Wide shot of the
city at night, with bright signs and passing cars. The scene is drawn in soft colours with thick black outlines.
"""


def query_token(index: int) -> str:
    """The reserved token standing for learnable query ``index`` of a shot."""
    return f"<query_{index:02d}>"


def add_query_tokens(tokenizer: PreTrainedTokenizerBase, count: int) -> None:
    """Reserves ``count`` query tokens in ``tokenizer`` as special tokens; those already there are left alone."""
    from tokenizers import AddedToken

    tokens = [AddedToken(query_token(i), special=True, normalized=False) for i in range(count)]
    tokenizer.add_tokens(tokens, special_tokens=True)


def small_tokenizer(vocab_size: int = 512, *, append_eos: bool = False) -> PreTrainedTokenizerBase:
    """A byte-level BPE tokenizer trained, the same every time, on the short text of this module.

    Args:
        vocab_size: 256 bytes, the special tokens, and as many merges as then fit.
        append_eos: end every encoded text with ``</s>``, as T5 tokenizers do.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = [PAD, EOS, VISION_START, VISION_END, IMAGE_PAD]
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(_TEXT.split("\n"), trainer)
    if append_eos:
        core.post_processor = processors.TemplateProcessing(single=f"$A {EOS}", special_tokens=[(EOS, core.token_to_id(EOS))])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        eos_token=EOS,
        additional_special_tokens=[VISION_START, VISION_END, IMAGE_PAD],
        padding_side="right",
        model_max_length=1_000_000,
    )
