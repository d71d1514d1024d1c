"""The controls: alignments and answers to compare with, each made in one place.

`RECIPES` is the table of them. A function that makes a control raises NotApplicableError where
there is none, and the message says why.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from itertools import chain
from operator import ne
from typing import Any

import numpy as np
import torch
from torch import Tensor

from iit.alignment import Alignment, initialise
from iit.alignment.references import vanilla, with_edits
from iit.data import Pairs
from iit.evaluation.faithfulness import inert_resampled
from iit.evaluation.illusion import split_by_reading, swapping
from iit.evaluation.outcomes import Outcomes, outcomes
from iit.evaluation.scoring import Scoring
from iit.evaluation.subspace import subspaces
from iit.evaluation.trust import NotApplicableError
from iit.evaluation.wrong_site import displaced, sees
from iit.intervened.store import ActivationStore
from iit.intervention import (
    All,
    Autoencoder,
    Frame,
    Intervention,
    LambdaIntervention,
    PrincipalComponents,
    SoftGate,
    Subset,
)
from iit.network import Network, untrained
from iit.result import Arm

Controls = Mapping[Arm, Alignment | Outcomes]
"""What stands in the alignment's place, for each control; outcomes are scored already."""
TRAINED_AGAIN = ("trained", "shuffled")
"""The needs of controls that are trained."""


def random_subspace(alignment: Alignment, seed: int) -> Alignment:
    """The same edits with random subspaces of equal rank.

    Random frames replace trained frames and principal components. Random coordinates replace those
    that a learned gate has chosen among units or features. The global generator is left as it was.

    Raises:
        ValueError: for an alignment with an intervention that has no rank of its own.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _exchanged(alignment, _drawn)


def has_random_subspace(alignment: Alignment) -> bool:
    """Whether random subspaces of equal rank can be drawn and differ from the trained ones.

    They do where every edit swaps some coordinates, and not all.
    """
    for edit in alignment.edits.values():
        trained = edit.intervention
        n = trained.width or 0
        if isinstance(trained.gate, SoftGate):
            n = len(trained.gate.logits())
        elif isinstance(trained.basis, Autoencoder):
            # Features of an autoencoder are chosen by a gate, or there is nothing to draw.
            n = 0
        # Without a rank of its own an intervention edits the whole activation.
        if not 0 < (trained.learned_rank() or 0) < n:
            return False
    return True


def random_subspace_draws(scoring: Scoring) -> dict[Arm, Alignment]:
    """`random_subspace` several times; nothing for an alignment without one.

    Equal seeds give equal subspaces.
    """
    if not has_random_subspace(scoring.alignment):
        return {}
    draws = {}
    for number in range(scoring.trust.random_subspaces):
        draw = random_subspace(scoring.alignment, scoring.seed * 1000 + number)
        draws[Arm("random_subspace", number)] = draw
    return draws


def fresh(alignment: Alignment, seed: int, *, network: Network | None = None) -> Alignment:
    """The same claim with weights drawn anew; if asked, on another network.

    It declares nothing inert. It shares the alignment's store unless it is on another network.

    Arguments:
        seed: draws the weights.
        network: by default the alignment's own.

    Raises:
        ValueError: for sites the network lacks, or of another width.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _exchanged(alignment, _redrawn, network)


def _redrawn(trained: Intervention) -> Intervention:
    redrawn = Intervention.from_config(trained.config(), trained.custom_parts)
    # The weights of an autoencoder were loaded, not drawn: they stay.
    if isinstance(trained.basis, Autoencoder):
        redrawn.basis.load_state_dict(trained.basis.state_dict())
    return redrawn


def _exchanged(
    alignment: Alignment,
    make: Callable[[Intervention], Intervention],
    network: Network | None = None,
) -> Alignment:
    """The same edits with other interventions; edits that share one still share one."""
    interventions: Any = alignment.interventions
    others = {trained: make(trained) for trained in interventions}
    edits = {}
    for key, edit in alignment.edits.items():
        edits[key] = replace(edit, intervention=others[edit.intervention])
    # `with_edits` shares the store, which is of one network.
    return with_edits(alignment, edits) if network is None else Alignment(network, edits)


def _drawn(trained: Intervention) -> Intervention:
    rank, basis, gate = trained.learned_rank(), trained.basis, trained.gate
    if rank is None:
        raise ValueError(f"{trained} has no rank: there is no random subspace to compare with.")
    # Its frames start at random, as before any training.
    redrawn = Intervention.from_config(trained.config(), trained.custom_parts)
    is_gated = isinstance(gate, SoftGate)
    if isinstance(basis, PrincipalComponents) or (is_gated and isinstance(basis, Frame)):
        frame = Frame(basis.arguments["width"], rank)
        return Intervention(trained.name, frame, All(), redrawn.operation)
    if is_gated:
        n = len(gate.logits())
        chosen = Subset(n, torch.randperm(n)[:rank].tolist())
        return Intervention(trained.name, basis, chosen, redrawn.operation)
    return redrawn


def pca_subspace(scoring: Scoring) -> Controls:
    """The same edits with as many leading principal components as the trained rank.

    The components are those of the training bases' activations.

    Raises:
        NotApplicableError: where an edit has no rank below its width, serves several variables by
            blocks, or is made of principal components itself; and where there are no more training
            pairs than the rank.
    """
    alignment = scoring.alignment
    if not has_random_subspace(alignment):
        raise NotApplicableError("an edit has no rank below its width")
    edits = {}
    n_needed = 0
    for key, edit in alignment.edits.items():
        trained = edit.intervention
        if trained.blocks or isinstance(trained.basis, PrincipalComponents):
            raise NotApplicableError("an edit has blocks, or is made of principal components")
        # Both are known here; `or 0` is for the type checker.
        basis = PrincipalComponents(trained.width or 0, trained.learned_rank() or 0)
        components = Intervention(trained.name, basis, All(), trained.operation)
        edits[key] = replace(edit, intervention=components)
        n_needed = max(n_needed, basis.rank or 0)
    if len(scoring.on_train_split.table) <= n_needed:
        raise NotApplicableError("there are no more training pairs than dimensions")
    other = with_edits(alignment, edits)
    initialise(other, scoring.pairs, batch_size=scoring.batch_size)
    return {Arm("pca_subspace"): other}


def placebos(alignment: Alignment, seed: int) -> dict[Arm, Alignment]:
    """Alignments that move activations about as far as the edit does, but elsewhere.

    With Δ = h' − h the edit's move, `placebo_direction` is h + u·‖Δ‖ with a random direction u.
    `placebo_pair` is h + Δ of another pair, the one before it in the batch. That pair should be of
    the same variables (`outcomes` with `apart`).

    Raises:
        NotApplicableError: for an alignment that has an edit with blocks.
    """
    if any(edit.intervention.blocks for edit in alignment.edits.values()):
        raise NotApplicableError("an edit serves several variables by blocks")

    def turned(move: Tensor) -> Tensor:
        # The same in every run: a run may be repeated to check it.
        generator = torch.Generator().manual_seed(seed)
        # [batch, position, width]
        noise = torch.randn(move.shape, generator=generator).to(move)
        length = move.norm(dim=-1, keepdim=True)
        return noise * length / noise.norm(dim=-1, keepdim=True)

    def shifted(move: Tensor) -> Tensor:
        # Each pair gets the move of the pair before it, and the first one the last's.
        return move.roll(1, 0)

    def placebo(change: Callable[[Tensor], Tensor], trained: Intervention) -> Intervention:
        def moved(h: Tensor, *source: Tensor) -> Tensor:
            return h + change(trained(h, *source) - h)

        return LambdaIntervention(moved, trained.needs_source)

    return {
        Arm("placebo_direction"): _exchanged(alignment, partial(placebo, turned)),
        Arm("placebo_pair"): _exchanged(alignment, partial(placebo, shifted)),
    }


def lower_ranks(scoring: Scoring) -> dict[Arm, Alignment]:
    """The same claim with a random frame of a lower rank.

    `least_rank` has one dimension less than the variable has values. A linear code of the values
    needs that many. An interchange that needs more swaps more than the variable. `lower_rank` has
    4, 16, … times the least rank, as long as that is below the claim's own; the rank is the draw.

    Raises:
        NotApplicableError: for a claim that has no more than the least rank, is of several
            variables, swaps no linear subspace or is not trained; and where the pairs do not know
            the values.
    """
    alignment, values = scoring.alignment, scoring.pairs.values or {}
    key, edit = next(iter(alignment.edits.items()))
    trained = edit.intervention
    own_rank = trained.learned_rank() or 0
    if len(alignment.edits) > 1 or not any(p.requires_grad for p in trained.parameters()):
        raise NotApplicableError("the claim is of several variables, or is not trained")
    # Values may be unhashable, so their texts are counted. −1 where the pairs do not know them.
    distinct = set(map(repr, values.get(str(key), ())))
    least = len(distinct) - 1
    if not subspaces(alignment) or not 0 < least < own_rank:
        raise NotApplicableError("the claim has no more dimensions than the values need")
    lower: dict[Arm, Alignment] = {}
    rank, arm = least, Arm("least_rank")
    while rank < own_rank:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(scoring.seed)
            basis = Frame(trained.width or 0, rank)
        frame = Intervention(trained.name, basis, All(), trained.operation)
        lower[arm] = with_edits(alignment, {key: replace(edit, intervention=frame)})
        rank *= 4
        arm = Arm("lower_rank", rank)
    return lower


def majority(scoring: Scoring) -> Controls:
    """For each pair: is the most frequent label of the training pairs a right answer?"""
    frequencies = Counter(chain.from_iterable(map(_each, scoring.on_train_split.table["label"])))
    # Of equally frequent labels the one whose text comes first.
    common = min(frequencies, key=lambda answer: (-frequencies[answer], str(answer)))
    right = [common in _each(label) for label in scoring.encoded.labels]
    return {Arm("majority"): Outcomes.of(np.array(right))}


def _each(label: Any) -> list[Any]:
    """The answers that a label says are right."""
    return label if isinstance(label, list) else [label]


def shuffled(pairs: Pairs, seed: int) -> Pairs:
    """The pairs with labels permuted within each split; which pairs are changing follows."""
    rng = np.random.default_rng(seed)
    dataset = pairs.dataset
    splits = np.array(dataset["split"])
    order = np.arange(len(splits))
    # Not a set: a set of texts has another order in each process.
    for split in dict.fromkeys(splits.tolist()):
        rows = np.flatnonzero(splits == split)
        order[rows] = rng.permutation(rows)
    labels = list(dataset["label"])
    columns: dict[str, Any] = {"label": [labels[row] for row in order]}
    if "base_answer" in dataset.column_names:
        columns["changing"] = list(map(ne, columns["label"], dataset["base_answer"]))
    for name, values in columns.items():
        dataset = dataset.remove_columns(name).add_column(name, values)
    # Without `again` the training pairs are not sampled anew, with right labels.
    return replace(pairs, dataset=dataset, again=None)


def _random_subspace_recipe(scoring: Scoring) -> Controls:
    draws = random_subspace_draws(scoring)
    if not draws:
        raise NotApplicableError("no random subspace of equal rank differs from the trained one")
    return draws


def _placebos(scoring: Scoring) -> Controls:
    # The batches decide which pair is another one's placebo, so their size is always the default.
    # A pair alone in its batch would be its own placebo. A pair of another variable has no
    # difference to give. Hence `apart`.
    return {
        arm: outcomes(other, scoring.encoded, apart=True, score=scoring.score)
        for arm, other in placebos(scoring.alignment, scoring.seed).items()
    }


def _seeds(scoring: Scoring) -> Controls:
    """Other draws of the start, on the same pairs in the same order."""
    # The alignment itself is the first of the seeds.
    return {
        Arm("seeds", number): fresh(scoring.alignment, scoring.seed + number)
        for number in range(1, scoring.trust.seeds)
    }


def _wrong_site(scoring: Scoring) -> Controls:
    """The same intervention at a site that sees no token that the variable depends on."""
    elsewhere = scoring.trust.wrong_site
    try:
        wrong = fresh(displaced(scoring.alignment, elsewhere), scoring.seed)
        # Edits that are apart at their own sites may overlap at the wrong one.
        wrong.check_apart()
        is_seen = sees(wrong, scoring.pairs)
    except ValueError as error:
        raise NotApplicableError(str(error)) from error
    if is_seen:
        raise NotApplicableError(
            f"at {elsewhere or 'the first tokens'} stands what the variable depends on; set "
            "trust.wrong_site"
        )
    return {Arm("wrong_site"): wrong}


def _shuffled_label(scoring: Scoring) -> Controls:
    """The same claim; the labels of its training and validation pairs are permuted."""
    if not any(p.requires_grad for p in scoring.alignment.parameters()):
        raise NotApplicableError("nothing is trained, so the labels have no part in it")
    return {Arm("shuffled_label"): fresh(scoring.alignment, scoring.seed)}


def _untrained_network(scoring: Scoring) -> Controls:
    """The same claim on random weights.

    It gets the trained network's prompts, which are not filtered again. Beside it stands that
    network without an edit: the chance level of `iia_forced` there.
    """
    try:
        network = untrained(scoring.network, scoring.seed)
    except ValueError as error:
        raise NotApplicableError(str(error)) from error
    other = fresh(scoring.alignment, scoring.seed, network=network)
    # A store is of one network.
    other.store = ActivationStore(network.model)
    unedited = scoring.outcomes(other, edited=False)
    return {
        Arm("untrained_network"): other,
        Arm("untrained_network/no_intervention"): unedited,
    }


def read_parts(scoring: Scoring) -> Controls:
    """The parts of the trained subspace (see `split_by_reading`), and what they compare with.

    `read_part/vanilla` swaps all that is read. The draws of `read_part/random_subspace` are the
    read parts of the same draws of `random_subspace`.
    """
    alignment, read = scoring.alignment, scoring.spaces.get("read")
    if not read:
        raise NotApplicableError(
            f"{alignment.interventions} swap no linear subspace of one position at a time"
        )
    parts = split_by_reading(alignment, read)
    controls = {Arm(name): part for name, part in parts.items()}
    controls[Arm("read_part/vanilla")] = swapping(alignment, read)
    for arm, random in random_subspace_draws(scoring).items():
        part = split_by_reading(random, read)["read_part"]
        controls[Arm("read_part/random_subspace", arm.draw)] = part
    return controls


def _rivals(scoring: Scoring) -> Controls:
    """The alignment itself, scored by what other causal models say of the same pairs."""
    rivals = {}
    for name, speaks in scoring.encoded.speaks.items():
        right = scoring.own_outcomes.right.get(f"rival/{name}")
        if right is not None:
            # Where a rival says nothing of a pair, the label stands in: that would flatter it.
            rivals[Arm("rival", name)] = Outcomes.of(np.where(speaks, right, np.nan))
    return rivals


RECIPES: Mapping[str, tuple[Callable[[Scoring], Controls], str]] = {
    "vanilla": (lambda scoring: {Arm("vanilla"): vanilla(scoring.alignment)}, "quick"),
    "random_subspace": (_random_subspace_recipe, "quick"),
    "pca_subspace": (pca_subspace, "quick"),
    "placebos": (_placebos, "quick"),
    "no_intervention": (lambda scoring: {Arm("no_intervention"): scoring.unedited}, "quick"),
    "seeds": (_seeds, "trained"),
    "lower_ranks": (lower_ranks, "trained"),
    "wrong_site": (_wrong_site, "trained"),
    "shuffled_label": (_shuffled_label, "shuffled"),
    "untrained_network": (_untrained_network, "trained"),
    "read_parts": (read_parts, "full"),
    "majority": (majority, "quick"),
    "inert_resampled": (inert_resampled, "quick"),
    "rivals": (_rivals, "quick"),
}
"""{kind of controls: (what makes them, what they need)}, in the order of rows.

They need one of these: "quick", made at every level of trust. "full", made on the test split with
full trust. "trained", made as "full" and trained on the alignment's pairs. "shuffled", trained on
pairs with shuffled labels.
"""


def controls_of(scoring: Scoring) -> tuple[Controls, dict[str, str]]:
    """Make the controls, and train those that need it.

    Controls that share their network and their pairs are trained side by side.

    Returns:
        ({arm: the control}, {kind of controls: why there is none}).
    """
    controls: dict[Arm, Any] = {}
    missing: dict[str, str] = {}
    # {(needs, network): {name: control}}, which are trained side by side.
    trainings: dict[Any, dict[str, Alignment]] = {}
    for kind, (make, needs) in RECIPES.items():
        if needs != "quick" and not scoring.is_full:
            continue
        try:
            if needs in TRAINED_AGAIN:
                _check_trainable(scoring)
            of_kind: Any = make(scoring)
        except NotApplicableError as error:
            missing[kind] = str(error)
            continue
        controls |= of_kind
        if needs not in TRAINED_AGAIN:
            continue
        for arm, control in of_kind.items():
            # What is scored already has nothing to train.
            if isinstance(control, Alignment):
                trainings.setdefault((needs, control.network), {})[str(arm)] = control
    for (needs, _), side_by_side in trainings.items():
        pairs = scoring.pairs
        if needs == "shuffled":
            pairs = shuffled(pairs, scoring.seed)
        scoring.refit(side_by_side, pairs, scoring.seed)
    return controls, missing


def _check_trainable(scoring: Scoring) -> None:
    """Raise NotApplicableError where the pairs, or an intervention, lack what a training needs."""
    pairs = scoring.pairs
    lacking = sorted({"train", "validation"} - set(pairs.dataset["split"]))
    lacking += sorted(set(map(str, scoring.alignment.variables)) - set(pairs.variables))
    if lacking:
        raise NotApplicableError(f"the pairs lack {', '.join(lacking)}")
    for trained in scoring.alignment.interventions:
        if not trained.needs_source and any(p.requires_grad for p in trained.parameters()):
            raise NotApplicableError(f"{trained} reads no source, so interchanges do not train it")
