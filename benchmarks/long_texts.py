"""What prompts of thousands of tokens take: `python -m benchmarks.long_texts` prints the table of
docs/long_texts.md for SmolLM2.

Each line is a process of its own. The peak is that of anonymous memory while the line runs, less
what the process held before it: the weights, the prompts, and the libraries. Files that are mapped
do not count, because the system can drop them. The time is that of the processor, so that other
work on the machine does not count.
"""

import argparse
import ctypes
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from benchmarks.settings import THREADS

LAYER = 17
CASES = {
    "forward": "the network's own output: logits at every token",
    "capture": f"`capture` of block_output[{LAYER}] at every token",
    "capture_edited": f"`capture` of block_output[{LAYER + 1}] in an edited run, at the last token",
    "capture_dataset": "`capture_dataset` to a folder, one prompt a batch",
    "answer_logits": f"`answer_logits`, block_output[{LAYER}] swapped at the last token",
    "store_first": "the same, and a store keeps the bases and sources",
    "store_second": "the same again, from the store",
    "store_mapped": "the same, and the store keeps them in files (budget=0)",
    "fit": "`fit` for one epoch at the last token, rank 16, one batch a split",
    "evaluate": '`evaluate` of one batch, trust="quick"',
}
"""{case: what is run}."""


def anonymous() -> int:
    """The bytes of the process's anonymous memory."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise OSError("This system does not tell RssAnon.")


class Peak(threading.Thread):
    """Looks at the process's memory every 5 ms."""

    def __init__(self):
        super().__init__(daemon=True)
        self.before, self.peak, self.done = anonymous(), 0, threading.Event()

    def run(self) -> None:
        """Note the largest figure."""
        while not self.done.wait(0.005):
            self.peak = max(self.peak, anonymous() - self.before)


def long_pairs(lm: Any, n: int, n_tokens: int, folder: str) -> Any:
    """`n` pairs a split of prompts of about `n_tokens` tokens: a story, then who gave the milk.

    The label is the source's person. Nothing is filtered, so the figures of these pairs say nothing
    about the network.
    """
    import iit

    story = "The box is in the room. A cat sat by the door. It was late in the day. " * n_tokens
    rows = []
    for number in range(3 * n):
        row: dict[str, Any] = {"split": ("train", "validation", "test")[number % 3]}
        row["label"] = " John"
        for name, person in (("base", " Mary"), ("source", " John")):
            end = f" Then{person} gave the milk to"
            ids = lm.tokenizer.encode(f"Day {number}. {story}")
            length = n_tokens - len(lm.tokenizer.encode(end))
            text = lm.tokenizer.decode(ids[:length])
            start = len(text) + len(" Then")
            row[name], row[f"{name}_answer"] = text + end, person
            row[f"{name}_roles"] = {"name": [start, start + len(person)]}
        rows.append(json.dumps(row))
    path = Path(folder) / "pairs.jsonl"
    path.write_text("\n".join(rows), encoding="utf-8")
    return iit.Pairs.load(path, variable="person")


def one_case(case: str, options: argparse.Namespace) -> dict[str, float]:
    """Run one case in this process."""
    import torch

    import iit
    from iit.intervened.store import ActivationStore

    torch.set_num_threads(options.threads)
    lm = iit.load_network("smollm2", dtype=options.dtype)
    generator = torch.Generator().manual_seed(0)
    shape = (options.batch, options.tokens)
    ids = torch.randint(1000, 40_000, (2, *shape), generator=generator)
    base, source = ({"input_ids": part, "attention_mask": torch.ones_like(part)} for part in ids)
    last = iit.Site("block_output", layer=LAYER, position=-1)
    every = iit.Site("block_output", layer=LAYER)
    later = iit.Site("block_output", layer=LAYER + 1, position=-1)
    edited = iit.IntervenedModel(lm, {last: iit.VanillaIntervention()})
    frame = iit.LowRankRotatedSpaceIntervention(576, rank=16)
    alignment = iit.Alignment(lm, {"person": iit.Edit(last, frame)})

    pairs: Any = None
    folder = tempfile.TemporaryDirectory()
    if case in ("fit", "evaluate"):
        pairs = long_pairs(lm, options.batch, options.tokens, folder.name)
    stores = {"store_first": 2**34, "store_second": 2**34, "store_mapped": 0}
    if case in stores:
        edited.store = ActivationStore(lm.model, budget=stores[case], folder=folder.name)
    if case == "store_second":
        with torch.no_grad():
            edited.answer_logits(base, source)

    def run() -> Any:
        if case == "forward":
            return lm.model(**base)
        if case == "capture":
            return iit.capture(lm, base, every)
        if case == "capture_edited":
            return iit.capture(edited, base, later, sources=source)
        if case == "capture_dataset":
            rows = ({key: value[k : k + 1] for key, value in base.items()} for k in range(shape[0]))
            return iit.capture_dataset(lm, rows, every, folder=f"{folder.name}/rows")
        if case == "fit":
            return iit.fit(
                alignment,
                pairs,
                max_epochs=1,
                batch_size=shape[0],
                eval_batch_size=shape[0],
                folder=folder.name,
            )
        if case == "evaluate":
            return iit.evaluate(alignment, pairs, trust="quick", batch_size=shape[0])
        return edited.answer_logits(base, source)

    # What was freed goes back to the system, so that it is not taken for free memory.
    ctypes.CDLL(None).malloc_trim(0)
    watch = Peak()
    watch.start()
    start = time.process_time()
    with torch.set_grad_enabled(case == "fit"):
        result = run()
    seconds = time.process_time() - start
    watch.done.set()
    watch.join()
    del result
    kept = {}
    if edited.store is not None:
        contents = edited.store._contents
        n_tokens = options.tokens * len({prompt for _, prompt in contents})
        kept["store"] = sum(tensor.nbytes for tensor in contents.values()) / n_tokens
    return {"seconds": seconds, "peak": watch.peak} | kept


def main() -> None:
    """Measure every case that is asked for, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=2000, help="tokens of each prompt")
    parser.add_argument("--batch", type=int, default=4, help="prompts, all in one batch")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=THREADS)
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--child", choices=list(CASES), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(one_case(options.child, options)), flush=True)
        return
    print(f"{options.batch} prompts of {options.tokens} tokens in one batch, {options.dtype}\n")
    print("| what is run | peak | processor seconds | store, bytes a token |")
    print("| --- | ---: | ---: | ---: |", flush=True)
    for case in options.cases:
        sizes = [
            f"--{name}={getattr(options, name)}" for name in ("tokens", "batch", "dtype", "threads")
        ]
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.long_texts", *sizes]
        done = subprocess.run(
            [*command, f"--child={case}"], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(done.stderr)
        result = json.loads(done.stdout.strip().splitlines()[-1])
        store = f"{result['store']:,.0f}" if "store" in result else ""
        peak = f"{result['peak'] / 2**20:,.0f} MiB"
        print(f"| {CASES[case]} | {peak} | {result['seconds']:.1f} | {store} |", flush=True)


if __name__ == "__main__":
    main()
