"""Where does SmolLM2 keep in which city the Eiffel Tower is?

`python experiments/quickstart/trace_a_fact.py`
"""

from pathlib import Path

import iit
from iit.patching import trace
from iit.report import heatmap, save_figure

folder = Path("outputs/quickstart")
folder.mkdir(parents=True, exist_ok=True)
lm = iit.load_network("smollm2")
assert isinstance(lm, iit.LanguageModel)
fact = lm.encode(
    ["The Eiffel Tower is in the city of"],
    positions={"subject": [" Eiffel Tower"]},
    answers=[" Paris"],
)

# The subject's embeddings are noised; each cell in turn has its state of the clean run. MLPs are
# restored seven layers at once.
for component, window in (("block_output", 1), ("mlp_output", 7), ("attention_output", 7)):
    effects = trace(lm, fact, components=component, positions="tokens", window=window, draws=3)
    clean, corrupted = effects.source["probability"].mean(), effects.unedited["probability"].mean()
    # At the last token the last block gives the answer itself; what is restored before it is a
    # finding.
    last = effects.cells[-1].site.position
    best = next(
        i
        for i in effects.top(len(effects), "probability")
        if effects.cells[i].site.position != last
    )
    cell, restored = effects.cells[best].site, effects.mean("probability")[best]
    told = f"P(' Paris') {clean:.2f} clean, {corrupted:.2f} corrupted, {restored:.2f} restored"
    print(f"{component}: {told} at {cell} {effects.labels[cell.position]!r}")
    picture = heatmap(effects, title=f"restoring {component}")
    save_figure(picture, folder / f"fact_{component}", effects.table())
