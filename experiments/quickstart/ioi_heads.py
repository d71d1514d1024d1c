"""Which attention heads move SmolLM2's answer to the other name? `python experiments/quickstart/ioi_heads.py`."""

import json
import time
from pathlib import Path

import numpy as np
from rich.progress import track

import iit
from iit.causal import ioi
from iit.intervened import ActivationStore
from iit.report.page import TABLE, main

N, HALF, TOP, ROOT = 96, 48, 10, Path(__file__).resolve().parents[1]
rng, task, lm = np.random.default_rng(0), ioi(), iit.load_network("smollm2")

# A prompt, and its twin: the same words, but the other name is repeated. Kept where the network answers both rightly.
names = [name for name in task.pools["name"] if len(lm.tokenizer.encode(f" {name}", add_special_tokens=False)) == 1]
drawn = [task.draw(rng, {**task.pools, "name": names}) for _ in range(2 * N)]
twins = [{**inputs, "subject": task.model.run(inputs)["io_name"]} for inputs in drawn]
texts = [[task.write(inputs).text for inputs in side] for side in (drawn, twins)]
answers = [[task.answer(task.model.run(inputs)) for inputs in side] for side in (drawn, twins)]
rows = np.logical_and(*map(lm.answers_right, texts, answers)).nonzero()[0][:N]
base, source = (lm.encode([t[i] for i in rows], answers=[a[i] for i in rows]) for t, a in zip(texts, answers, strict=True))

places = list(np.ndindex(lm.model.config.num_hidden_layers, lm.model.config.num_attention_heads))
sites = [iit.Site("attention_value_output", layer=layer, head=head, position="last") for layer, head in places]
own, swapped = (iit.capture(lm, batch, sites) for batch in (base, source))


def difference(batch: dict, heads: list[iit.Site], values: iit.Activations, store: ActivationStore) -> np.ndarray:
    """Float[prompt]: logit of the base's indirect object minus that of its subject, where these heads hold these values."""
    edited = iit.IntervenedModel(lm, dict.fromkeys(heads, iit.VanillaIntervention()))
    edited.store = store
    logits = edited.answer_logits(batch, values).detach()[:, 0]
    return (logits.gather(1, base["answer"]) - logits.gather(1, source["answer"]))[:, 0].double().numpy()


# What a store has kept of the bases serves all heads of a layer. A head given its own value changes nothing.
store = ActivationStore(lm.model)
clean, flipped = (difference(batch, sites[-1:], values, store) for batch, values in ((base, own), (source, swapped)))
changes = []
for (_, head), site in track(list(zip(places, sites, strict=True)), "patching heads"):
    store = store if head else ActivationStore(lm.model)
    changes.append(difference(base, [site], swapped, store) - clean)
order = sorted(range(len(sites)), key=lambda n: -abs(changes[n][:HALF].mean()))
found = {f"layer {places[n][0]}, head {places[n][1]}": changes[n] for n in order[:TOP]}
sets = {"these together": order[:TOP], f"{TOP} drawn from the others, together": rng.permutation(order[TOP:])[:TOP]}
found |= {k: difference(base, [sites[n] for n in v], swapped, ActivationStore(lm.model)) - clean for k, v in sets.items()}
lines = []
for name, change in found.items():
    low, high = np.quantile(rng.choice(change[HALF:], (5000, N - HALF)).mean(1), [0.025, 0.975])
    means, share = np.split(change, [HALF]), change[HALF:].mean() / (flipped - clean)[HALF:].mean()
    lines.append([name, *(f"{part.mean():+.2f}" for part in means), f"{low:+.2f} to {high:+.2f}", f"{share:.0%}"])
columns = ["heads", "change, ranking half", "change, other half", "95% interval", "share of a whole flip"]
facts = {
    "n": len(rows),
    "clean": clean[HALF:].mean(),
    "flipped": flipped[HALF:].mean(),
    "cpu_seconds": round(time.process_time()),
}
facts["changes"] = {str(site): round(change[HALF:].mean(), 4) for site, change in zip(sites, changes, strict=True)}
result = {"schema": TABLE, "facts": facts, "columns": columns, "lines": lines}
(ROOT / "ioi_heads" / "result.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
main(["--write", str(ROOT)])
