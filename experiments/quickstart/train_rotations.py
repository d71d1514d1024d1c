"""A rank-1 and a rank-64 subspace for one variable of IOI.

`python experiments/quickstart/train_rotations.py`
"""

import iit
from iit.result import where
from iit.tasks import ioi

lm = iit.load_network("smollm2")
assert isinstance(lm, iit.LanguageModel)
pairs = iit.Pairs.sample(ioi(), lm, n_train=320, n_val=60, n_test=100, seed=0)
site = iit.Site("block_output", layer=17, position="s2")  # the second mention of the subject

# One alignment a rank, trained side by side: what they read of the frozen network is run once.
alignments = {
    f"rank {rank}": iit.Alignment(
        lm, {"subject_position": iit.Edit(site, iit.LowRankRotatedSpaceIntervention(576, rank))}
    )
    for rank in (1, 64)
}
fitted = iit.fit(alignments, pairs, max_epochs=3)
for name, alignment in alignments.items():
    print(f"{name}, its epoch chosen by validation: {fitted[name]}")
    rows = iit.evaluate(alignment, pairs, trust="quick")
    print(where(rows, subset="changing", metric="iia", split="test"))
