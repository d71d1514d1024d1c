"""Writes `tests/golden/saved`: folders as today's version writes them. `python -m
tests.golden.save`.

They are kept, so that later versions show that they read them; this is here to tell how they came
about.
"""

import json
import warnings

import torch

import iit
from iit.network import mlp, save_network, small_transformer
from tests.golden.figures import SAVED, WORDS, tiny, tiny_batches

WIDTH = 16


def main() -> None:
    """Write all of them."""
    torch.manual_seed(0)
    network = small_transformer(WORDS, n_layers=2, n_heads=2, width=WIDTH, max_length=32)
    for parameter in network.model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.5)
    save_network(network, SAVED / "network")
    classifier = mlp(n_inputs=4, n_classes=3, width=5, depth=2)
    save_network(classifier, SAVED / "classifier")

    lm = tiny()
    base, _ = tiny_batches(lm)
    noun = iit.Site("block_output", layer=0, position="noun")
    edits = {noun: iit.LowRankRotatedSpaceIntervention(WIDTH, 3)}
    iit.IntervenedModel(lm, edits).save_pretrained(SAVED / "intervened")
    boundless = iit.BoundlessRotatedSpaceIntervention(WIDTH).eval()
    alignment = iit.Alignment(lm, {"noun": iit.Edit(noun, boundless)})
    alignment.save_pretrained(SAVED / "alignment")
    sites = [noun, iit.Site("mlp_output", layer=1)]
    iit.capture_dataset(lm, [base], sites, folder=SAVED / "captured")
    _save_pairs()
    _save_pyvene(lm)


def _save_pairs() -> None:
    """Pairs of the small transformer's words: the label is the source's noun."""
    nouns, rows = ("dog", "cat", "bird"), []
    for number in range(36):
        base = f"the {('red', 'blue', 'green')[number % 3]} {nouns[number % 3]} sees"
        source = f"a {('blue', 'green')[number % 2]} {nouns[(number + 1 + number % 2) % 3]} likes"
        spans = [
            [len(" ".join(text.split()[:2])), len(" ".join(text.split()[:3]))]
            for text in (base, source)
        ]
        row = {"base": base, "source": source, "label": f" {source.split()[2]}"}
        row |= {"base_roles": {"noun": spans[0]}, "source_roles": {"noun": spans[1]}}
        row["split"] = ("train", "train", "validation", "test")[number // 9]
        rows.append(row)
    (SAVED / "pairs.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8"
    )


def _save_pyvene(lm: iit.LanguageModel) -> None:
    """A rotation, as pyvene saves it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import pyvene

        place = pyvene.RepresentationConfig(
            layer=1,
            component="block_output",
            unit="pos",
            max_number_of_units=1,
            low_rank_dimension=3,
        )
        config = pyvene.IntervenableConfig([place], pyvene.LowRankRotatedSpaceIntervention)
        pyvene.IntervenableModel(config, lm.model).save(str(SAVED / "pyvene"))


if __name__ == "__main__":
    main()
