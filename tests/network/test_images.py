"""Networks that read an image beside the text: a tiny LLaVA and a processor made here."""

import json

import numpy as np
import pytest
import torch
import transformers as t
from PIL import Image
from tokenizers import AddedToken
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

import iit
from iit.alignment import one
from iit.data import Pairs
from tests.families import SIZES
from tests.made_tokenizers import byte_level

TEXTS = ["When <image> John left", "<image> milk to"]


def processor():
    tokenizer = byte_level("<s> $A")
    tokenizer.add_special_tokens({"additional_special_tokens": [AddedToken("<image>")]})
    pictures = CLIPImageProcessorPil(
        size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8}, do_convert_rgb=True
    )
    return t.LlavaProcessor(
        pictures, tokenizer, patch_size=4, vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )  # fmt: skip


def network(processor):
    tokenizer = processor.tokenizer
    vision = {**SIZES, "image_size": 8, "patch_size": 4, "num_attention_heads": 2}
    config = t.LlavaConfig(
        vision_config=t.CLIPVisionConfig(**{k: vision[k] for k in vision if "vocab" not in k}),
        text_config=t.LlamaConfig(**SIZES | {"vocab_size": len(tokenizer)}),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
    )
    torch.manual_seed(0)
    model = t.LlavaForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.3)
    return model


def picture(seed):
    pixels = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("llava")
    reader = processor()
    reader.save_pretrained(path)
    network(reader).save_pretrained(path)
    for seed in range(4):
        picture(seed).save(path / f"{seed}.png")
    return path


@pytest.mark.filterwarnings("ignore:Answers lack the space")
def test_the_kind_is_found_and_logits_are_those_of_transformers(folder):
    lm = iit.load_network(str(folder))
    assert type(lm.model) is t.LlavaForConditionalGeneration
    prompts = []
    for seed, text in enumerate(TEXTS):
        image = (picture(seed), str(folder / "1.png"))[seed]
        prompts.append({"text": text, "image": image})
    batch = lm.encode(
        prompts, {"picture": ["<image>"] * 2, "end": ["left", "to"]}, [" to", " gave"]
    )
    assert batch["pixel_values"].shape == (2, 3, 8, 8)
    image_id = lm.tokenizer.convert_tokens_to_ids("<image>")
    for row in range(2):
        seen = batch["input_ids"][row, batch["positions"]["picture"][row]]
        assert seen.tolist() == [image_id] * 4, "a role at the placeholder is the whole image"
    lengths = batch["attention_mask"].sum(1)
    for role in ("end", "last"):
        assert (batch["positions"][role][:, -1] == lengths - 1).all()
    expected = []
    for seed, text in enumerate(TEXTS):
        inputs = lm.processor(text=[text], images=[picture(seed)], return_tensors="pt")
        assert inputs["input_ids"].shape[1] == lengths[seed]
        expected.append(lm.model(**inputs).logits[:, -1:])
    edited = iit.IntervenedModel(lm, {})
    torch.testing.assert_close(edited.answer_logits(batch), torch.cat(expected))
    tokens = lm.tokenizer.convert_ids_to_tokens([int(logits.argmax()) for logits in expected])
    best = [token.replace("Ġ", " ") for token in tokens]
    right = lm.encode(prompts, answers=best)["answer"][:, 0] == torch.cat(expected).argmax(-1)[:, 0]
    assert lm.answers_right(prompts, best).tolist() == right.tolist()


def test_answers_of_several_tokens_stand_behind_the_prompt_with_its_image(folder):
    lm = iit.load_network(str(folder))
    prompt = {"text": TEXTS[1], "image": picture(0)}
    batch = lm.encode(prompt, answers=" New York")
    assert batch["answer"].shape == (1, 2)
    inputs = lm.processor(text=[TEXTS[1] + " New"], images=[picture(0)], return_tensors="pt")
    expected = lm.model(**inputs).logits[:, -2:]
    torch.testing.assert_close(iit.IntervenedModel(lm, {}).answer_logits(batch), expected)


def test_an_image_column_reaches_a_fit(folder):
    lines = []
    for number, split in enumerate(["train"] * 8 + ["validation"] * 4 + ["test"] * 4):
        line = {"split": split, "label": (" to", " gave")[number % 2], "base_answer": " left"}
        for side, shift in (("base", 0), ("source", 1)):
            line[side] = TEXTS[number % 2]
            line[f"{side}_image"] = f"{(number + shift) % 4}.png"
            start = line[side].index("<image>")
            line[f"{side}_roles"] = {"picture": [start, start + 7]}
        lines.append(line)
    path = folder / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    pairs = Pairs.load(path, variable="picture")
    assert pairs.dataset["base_image"][1] == (folder / "1.png").read_bytes()
    pairs.save(folder / "pairs.parquet")
    again = Pairs.load(folder / "pairs.parquet", variable="picture")
    assert again.dataset["source_image"] == pairs.dataset["source_image"]
    lm = iit.load_network(str(folder))
    site = iit.Site("block_output", layer=0, position="picture")
    alignment = one(
        lm, "picture", site, lambda width: iit.LowRankRotatedSpaceIntervention(width, 2)
    )
    assert 0 <= iit.fit(alignment, pairs, max_epochs=1).value <= 1
    batch = iit.data.EncodedPairs(pairs.split("test"), "picture", lm).batch([0, 1])
    expected = lm.encode({"text": TEXTS[0], "image": picture(0)})["pixel_values"]
    torch.testing.assert_close(batch["base"]["pixel_values"][:1], expected)
    source = batch["sources"]["picture"]["pixel_values"][:1]
    torch.testing.assert_close(
        source, lm.encode({"text": TEXTS[0], "image": picture(1)})["pixel_values"]
    )


def test_bases_that_differ_in_their_image_are_different(folder):
    rows = []
    for number in range(12):
        row = {"base": "<image> left", "source": "<image> left", "label": " to"}
        images = {"base_image": f"{number % 4}.png", "source_image": f"{number % 3}.png"}
        rows.append(row | images | {"base_answer": " gave", "base_roles": {}, "source_roles": {}})
    path = folder / "split.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    pairs = Pairs.load(path)
    seen = {}
    for split, image in zip(pairs.dataset["split"], pairs.dataset["base_image"], strict=True):
        assert seen.setdefault(image, split) == split
    assert len(set(seen.values())) > 1


@pytest.mark.parametrize(
    ("prompts", "said"),
    [
        ([{"text": "no place", "image": picture(0)}], "number of images|placeholder of an image"),
        ([{"text": TEXTS[0], "image": picture(0)}, "left"], "1 of 2 texts have an image"),
    ],
)
def test_images_that_do_not_fit(folder, prompts, said):
    with pytest.raises(ValueError, match=said):
        iit.load_network(str(folder)).encode(prompts)


def test_an_image_without_an_encoder_is_refused(folder):
    tokenizer = byte_level()
    llama = t.LlamaForCausalLM(t.LlamaConfig(**SIZES | {"vocab_size": len(tokenizer)}))
    with pytest.raises(ValueError, match=r"LlamaForCausalLM.* has no encoder for images"):
        iit.LanguageModel(llama, tokenizer).encode({"text": "John", "image": picture(0)})
    assert iit.load_network(str(folder)).encode("John left")["input_ids"].shape == (1, 3)
