"""A tiny image-text model on disk: real LLaVA, real processor, saved as its users find it; it may learn one answer by heart."""

import torch

from curation.asking import PROMPTS

CHAT = (
    "{% for message in messages %}<{{ message['role'] }}>"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{% endif %}</s>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
SPECIAL = ["<pad>", "</s>", "<user>", "<assistant>", "<system>", "<image>"]


def prompt_tokenizer(size=3000):
    """A byte-level BPE tokenizer trained on the prompts, so that they are short in tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        [path.read_text() for path in sorted(PROMPTS.glob("*.md"))],
        trainers.BpeTrainer(vocab_size=size, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="</s>", additional_special_tokens=SPECIAL[2:], chat_template=CHAT
    )


def build_llava(folder, positions=8192):
    """Write a LLaVA with random weights, 4 tokens an image; returns model and tokenizer."""
    from transformers import (
        CLIPImageProcessorPil,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    tokenizer = prompt_tokenizer()
    image = tokenizer.convert_tokens_to_ids("<image>")
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=16
    )
    text = LlamaConfig(
        hidden_size=96,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=len(tokenizer),
        max_position_embeddings=positions,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_id=image, image_seq_length=4, vision_feature_layer=-1
    )
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config).eval()
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    pictures = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    processor = LlavaProcessor(
        image_processor=pictures,
        tokenizer=tokenizer,
        patch_size=16,
        vision_feature_select_strategy="default",
        chat_template=CHAT,
    )
    processor.num_additional_image_tokens = 1  # the class token that is left out
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model, tokenizer


def pieces_of(answer, length=24):
    """A text cut into pieces no two of which are the same: as tokens, each tells which one follows."""
    pieces, start = [], 0
    while start < len(answer):
        end = start + length
        while answer[start:end] in pieces:
            end += 1
        pieces.append(answer[start:end])
        start = end
    return pieces


def learn_by_heart(model, tokenizer, answer, folder):
    """Train until ``answer`` is the likeliest answer to whatever is asked; then save. Takes a few seconds."""
    torch.manual_seed(1)
    pieces = pieces_of(answer)
    tokenizer.add_tokens(pieces)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    told = [*tokenizer.convert_tokens_to_ids(pieces), tokenizer.eos_token_id]
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    right = 0
    for _ in range(500):
        if right == 5:
            break
        before = torch.randint(len(SPECIAL), len(tokenizer) - len(pieces), (int(torch.randint(1, 300, ())),)).tolist()
        before.append(tokenizer.convert_tokens_to_ids("<assistant>"))
        ids = torch.tensor([before + told])
        loss = torch.nn.functional.cross_entropy(model(input_ids=ids).logits[0, len(before) - 1 : -1], ids[0, len(before) :])
        right = right + 1 if float(loss.detach()) < 0.02 else 0
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def build_qwen(folder):
    """Write a Qwen2.5-VL with random weights, its tokenizer and image processor; its processor needs torchvision."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2VLImageProcessorPil

    tokenizer = prompt_tokenizer()
    image = tokenizer.convert_tokens_to_ids("<image>")
    vision = {"depth": 1, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 64, "patch_size": 14}
    text = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 8192,
        "vocab_size": len(tokenizer),
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]},
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = Qwen2_5_VLConfig(vision_config=vision, text_config=text, image_token_id=image, video_token_id=len(tokenizer) + 1)
    torch.manual_seed(0)
    model = Qwen2_5_VLForConditionalGeneration(config).eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    Qwen2VLImageProcessorPil(min_pixels=28 * 28, max_pixels=56 * 56).save_pretrained(folder)
