"""When the label is the answer: by its tokens, among the listed answers, or as it is written."""

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import Any

import numpy as np
import torch
from torch import Tensor

from iit.batch import IGNORED
from iit.intervened.intervened_model import IntervenedModel

PATTERNS = {"exact": r"\A\s*{label}\s*\Z", "contains": r"(?<!\w){label}(?!\w)"}
"""{comparison: its regular expression}; {label} stands for a label without the spaces around it."""


@dataclass(frozen=True)
class Score:
    """When the label is the answer of a run; prompts are filtered by the same score.

    - argmax: each of its tokens is the argmax over the whole vocabulary.
    - forced: it is likelier, as a whole, than the other answers that the pair lists (`forced` of
      `iit.evaluation.outcomes.Outcomes`). A prompt is answered rightly where its answer is likelier
      than the others that it lists (`Task.alternatives`).
    - generated: the network writes greedily, and the text is compared with the label.

    Arguments:
        kind: argmax | forced | generated.
        compare: "exact", the label alone; "contains", the label as whole words; a regular
            expression with {label} in it, which is the label as it is written; or the import path
            of a function of (text, pair). Where a pair has several labels, any of them is right.
            An empty text is never right, and with "exact" a text without an end is not, either.
        max_new_tokens: the most tokens that are written.

    Raises:
        ValueError: another kind or comparison, or no token.
    """

    kind: str = "argmax"
    compare: str = "exact"
    max_new_tokens: int = 20

    def __post_init__(self) -> None:
        try:
            # Nothing is right here, but the pattern is compiled, or the function imported.
            self.is_right("", {"label": [""]})
            fits = self.kind in ("argmax", "forced", "generated") and self.max_new_tokens > 0
        except Exception:  # of a pattern, or of an import
            fits = False
        if not fits:
            raise ValueError(
                f"{self}: kind is argmax, forced or generated; compare is exact, contains, a "
                "regular expression with {label} in it, or the import path of a function of (text, "
                "pair); max_new_tokens is 1 or more."
            )

    @property
    def metric(self) -> str:
        """The metric of the rows."""
        return "iia" if self.kind == "argmax" else f"iia_{self.kind}"

    def check(self, model: IntervenedModel) -> None:
        """Raise ValueError for a network that cannot write, and for sites at the label's tokens."""
        # A network that is no language model does not say whether it has two sequences.
        writes = not getattr(model.studied, "encoder_decoder", True)
        writes &= hasattr(model.network, "generate") and "answer[" not in str(model)
        if self.kind == "generated" and not writes:
            raise ValueError(
                "score=generated takes a decoder that writes text, and no site at answer[k], as no "
                f"label stands behind the prompt; got {type(model.network).__name__}, {model}."
            )

    def written(
        self, model: IntervenedModel, *inputs: Any, **options: Any
    ) -> tuple[Tensor, list[str]]:
        """What the edited network writes behind each base.

        Arguments:
            inputs, options: as `IntervenedModel.generate` takes them; greedy by default, whatever
                the network's own settings say.

        Returns:
            The new tokens, LongTensor[batch, new], −100 behind the end token; and the texts. With
            "exact" a text that does not end has "…" behind it.
        """
        self.check(model)
        studied: Any = model.studied
        tokenizer, settings = studied.tokenizer, studied.model.generation_config
        # Some networks have several end tokens.
        ends = torch.tensor(settings.eos_token_id or tokenizer.eos_token_id).flatten()
        options = {
            "do_sample": False,
            "num_beams": 1,
            "repetition_penalty": 1.0,
            "max_new_tokens": self.max_new_tokens,
            "eos_token_id": ends.tolist(),
        } | options
        ids = model.generate(*inputs, **options).cpu()
        new = ids[:, inputs[0]["input_ids"].shape[1] :]
        columns = torch.arange(new.shape[1])
        # [batch, 1]: how many tokens come before the end.
        lengths = (torch.isin(new, ends).cumsum(1) == 0).sum(1, keepdim=True)
        before_end = new.masked_fill(columns >= lengths, tokenizer.pad_token_id)
        texts = tokenizer.batch_decode(before_end, skip_special_tokens=True)
        if self.compare == "exact":
            for row in (lengths == len(columns))[:, 0].nonzero():
                texts[row] += "…"
                warnings.warn(
                    f"Texts that do not end within {self.max_new_tokens} tokens are wrong for "
                    "score.compare=exact. Raise score.max_new_tokens, or take compare=contains.",
                    stacklevel=2,
                )
        return new.masked_fill(columns > lengths, IGNORED), texts

    def is_right(self, text: str, pair: Mapping[str, Any]) -> bool:
        """Whether a text is right for a pair, whose `label` is one answer or several."""
        pattern = PATTERNS.get(self.compare, self.compare)
        if "{label}" not in pattern:
            # A module has no such attribute.
            judge = resolve_name(pattern).__call__
            return bool(text.strip() and judge(text, pair))
        labels = "|".join(re.escape(label.strip()) for label in np.ravel(pair["label"]))
        match = re.search(pattern.replace("{label}", f"(?:{labels})"), text)
        return bool(text.strip() and labels and match)


ARGMAX = Score()
"""The score of tokens."""
