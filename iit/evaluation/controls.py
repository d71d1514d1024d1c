"""The controls: alignments and answers to compare with, each made in one place.

`RECIPES` is the table of them. A function that makes a control raises NotApplicableError where
there is none, and the message says why.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from iit.alignment import Alignment, initialise
from iit.alignment.references import beside, vanilla
from iit.data import EncodedPairs, Pairs
from iit.data.prompts import write
from iit.data.table import columns_of, dataset
from iit.evaluation.faithfulness import inert_resampled
from iit.evaluation.illusion import split_by_reading, swapping
from iit.evaluation.outcomes import Outcomes, outcomes
from iit.evaluation.scoring import Scoring
from iit.evaluation.subspace import subspaces
from iit.evaluation.trust import NotApplicableError
from iit.intervened import Edit, capture
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
from iit.site import Site

Made = Mapping[Arm, Alignment | Outcomes | np.ndarray]
"""What is scored in the alignment's place, for each control.

An alignment has yet to be scored. Outcomes are scored already, and so is bool[n]: the pairs in
which the label is the answer.
"""


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
    return all(_has_random_subspace(edit.intervention) for edit in alignment.edits.values())


def _has_random_subspace(intervention: Intervention) -> bool:
    rank, gate = intervention.learned_rank(), intervention.gate
    if isinstance(gate, SoftGate):
        return 0 < gate.learned_rank() < len(gate.logits())
    if rank is None or intervention.width is None or isinstance(intervention.basis, Autoencoder):
        return False
    return rank < intervention.width


def random_subspaces(alignment: Alignment, seed: int, n: int) -> list[Alignment]:
    """`random_subspace` n times; nothing for an alignment without one.

    Equal seeds give equal subspaces.
    """
    if not has_random_subspace(alignment):
        return []
    return [random_subspace(alignment, seed * 1000 + number) for number in range(n)]


def fresh(
    alignment: Alignment,
    seed: int,
    *,
    network: Network | None = None,
    moved: Callable[[Site], Site] = lambda site: site,
) -> Alignment:
    """The same claim with weights drawn anew; if asked, on another network or at other sites.

    It declares nothing inert. It shares the alignment's store unless it is on another network.

    Arguments:
        seed: draws the weights.
        network: by default the alignment's own.
        moved: says for each site of the alignment where it is now.

    Raises:
        ValueError: for sites the network lacks, or of another width.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _exchanged(alignment, _redrawn, moved, network)


def _redrawn(trained: Intervention) -> Intervention:
    redrawn = Intervention.from_config(trained.config(), trained.custom_parts)
    # The weights of an autoencoder were loaded, not drawn: they stay.
    if isinstance(trained.basis, Autoencoder):
        redrawn.basis.load_state_dict(trained.basis.state_dict())
    return redrawn


def _exchanged(
    alignment: Alignment,
    make: Callable[[Intervention], Intervention],
    moved: Callable[[Site], Site] = lambda site: site,
    network: Network | None = None,
) -> Alignment:
    """The same edits with other interventions; edits that share one still share one."""
    # {trained intervention: the other one}
    others: dict[Intervention, Intervention] = {}
    edits = {}
    for key, edit in alignment.edits.items():
        if edit.intervention not in others:
            others[edit.intervention] = make(edit.intervention)
        sites, source_sites = (list(map(moved, s)) for s in (edit.sites, edit.source_sites))
        edits[key] = Edit(sites, others[edit.intervention], source_sites, edit.joint)
    # `beside` shares the store, which is of one network.
    return beside(alignment, edits) if network is None else Alignment(network, edits)


def _drawn(trained: Intervention) -> Intervention:
    rank, basis = trained.learned_rank(), trained.basis
    if rank is None:
        raise ValueError(f"{trained} has no rank: there is no random subspace to compare with.")
    # Its frames start at random, as before any training.
    redrawn = Intervention.from_config(trained.config(), trained.custom_parts)
    if isinstance(basis, PrincipalComponents) or (
        isinstance(basis, Frame) and isinstance(trained.gate, SoftGate)
    ):
        assert basis.width is not None
        return Intervention(trained.name, Frame(basis.width, rank), All(), redrawn.operation)
    if isinstance(trained.gate, SoftGate):
        n = len(trained.gate.logits())
        return Intervention(
            trained.name, basis, Subset(n, torch.randperm(n)[:rank].tolist()), redrawn.operation
        )
    return redrawn


def pca_subspace(scoring: Scoring) -> Made:
    """The same edits with as many leading principal components as the trained rank.

    The components are those of the training bases' activations.

    Raises:
        NotApplicableError: where an edit has no rank below its width, serves several variables by
            blocks, or is made of principal components itself; and where there are no more training
            pairs than the rank.
    """
    alignment, pairs = scoring.alignment, scoring.pairs
    if not has_random_subspace(alignment):
        raise NotApplicableError("an edit has no rank below its width")
    edits = {}
    for key, edit in alignment.edits.items():
        trained = edit.intervention
        rank, width = trained.learned_rank(), trained.width
        is_pca = isinstance(trained.basis, PrincipalComponents)
        if trained.blocks or is_pca or rank is None or width is None:
            raise NotApplicableError("an edit has blocks, or is made of principal components")
        basis = PrincipalComponents(width, rank)
        components = Intervention(trained.name, basis, All(), trained.operation)
        edits[key] = replace(edit, intervention=components)
    other = beside(alignment, edits)
    n_needed = max(edit.intervention.rank or 0 for edit in edits.values())
    if len(scoring.training_pairs) <= n_needed:
        raise NotApplicableError("there are no more training pairs than dimensions")
    initialise(other, pairs, batch_size=scoring.batch_size)
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
        # [batch, position, width]
        noise = torch.randn(move.shape, generator=torch.Generator().manual_seed(seed)).to(move)
        return noise * move.norm(dim=-1, keepdim=True) / noise.norm(dim=-1, keepdim=True)

    def placebo(trained: Intervention, change: Callable[[Tensor], Tensor]) -> Intervention:
        def moved(h: Tensor, *source: Tensor) -> Tensor:
            return h + change(trained(h, *source) - h)

        return LambdaIntervention(moved, trained.needs_source)

    # `roll` gives each pair the move of the pair before it, and the first one the last's.
    changes = {"placebo_direction": turned, "placebo_pair": lambda move: move.roll(1, 0)}
    return {
        Arm(name): _exchanged(alignment, partial(placebo, change=change))
        for name, change in changes.items()
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
    least = len(set(map(repr, values.get(str(key), ())))) - 1
    if not subspaces(alignment) or not 0 < least < own_rank:
        raise NotApplicableError("the claim has no more dimensions than the values need")
    lower: dict[Arm, Alignment] = {}
    rank = least
    while rank < own_rank:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(scoring.seed)
            basis = Frame(trained.width or 0, rank)
            frame = Intervention(trained.name, basis, All(), trained.operation)
        # The first of them is the least.
        arm = Arm("lower_rank", rank) if lower else Arm("least_rank")
        lower[arm] = _exchanged(alignment, {trained: frame}.__getitem__)
        rank *= 4
    return lower


def majority(scoring: Scoring) -> Made:
    """For each pair: is the most frequent label of the training pairs a right answer?"""
    labels = scoring.training_pairs["label"]
    frequencies = Counter(answer for label in labels for answer in _each(label))
    # Of equally frequent labels the one whose text comes first.
    common = min(frequencies, key=lambda answer: (-frequencies[answer], str(answer)))
    right = np.array([common in _each(label) for label in scoring.encoded.labels])
    return {Arm("majority"): right}


def _each(label: Any) -> list[Any]:
    """The answers that a label says are right."""
    return list(label) if isinstance(label, list | tuple) else [label]


def displaced(site: Site, elsewhere: Mapping[str, Any] | None) -> Site:
    """Where the variable should not be: as `elsewhere` says, else at the prompt's first tokens."""
    # As many tokens as the site has positions; of a role, one.
    n = len(site.position) if isinstance(site.position, tuple) else 1
    return replace(site, **(elsewhere or {"position": tuple(range(n))}))


def sees(alignment: Alignment, pairs: Pairs) -> bool:
    """Whether an alignment's sites follow the inputs that its variables depend on.

    Among test prompts these inputs are exchanged while all others stay. Sites that follow them then
    have other activations.

    Raises:
        ValueError: for pairs without a causal model.
    """
    sampler, network = pairs.sampler, alignment.studied
    if sampler is None or network is None:
        raise ValueError("the pairs have no causal model that says what the variable depends on")
    task, prompts = sampler.task, sampler.prompts("test", 100, 0)
    causes = set(map(str, alignment.variables))
    causes = causes.union(*map(task.model.ancestors, causes))
    inputs = dict(prompts.inputs)
    for name in causes.intersection(inputs):
        # Every prompt gets the value of the next one.
        inputs[name] = [*inputs[name][1:], inputs[name][0]]
    sites = [
        site for edit in alignment.edits.values() for site in (*edit.sites, *edit.source_sites)
    ]
    runs = []
    for version in (prompts, write(task, inputs)):
        table = dataset(columns_of("test", version, version.answers))
        base = EncodedPairs(table, (), network).batch(range(len(version)))["base"]
        runs.append(capture(network, base, sites))
    for site in sites:
        before, after = (activations[site] for activations in runs)
        # The same tokens in a batch of another length give other floats.
        near = 1e-4 * float(before.abs().max())
        if before.shape != after.shape or not torch.allclose(before, after, atol=near):
            return True
    return False


def shuffled(pairs: Pairs, seed: int) -> Pairs:
    """The pairs with labels permuted within each split; which pairs are changing follows."""
    rng = np.random.default_rng(seed)
    columns: dict[str, Any] = {name: list(pairs.dataset[name]) for name in ("split", "label")}
    labels = list(columns["label"])
    # Not a set: a set of texts has another order in each process.
    for split in dict.fromkeys(columns["split"]):
        rows = [i for i, s in enumerate(columns["split"]) if s == split]
        for row, other in zip(rows, rng.permutation(rows).tolist(), strict=True):
            labels[row] = columns["label"][other]
    dataset = _with_column(pairs.dataset, "label", labels)
    if "base_answer" in pairs.dataset.column_names:
        changing = [
            label != base_answer
            for label, base_answer in zip(labels, pairs.dataset["base_answer"], strict=True)
        ]
        dataset = _with_column(dataset, "changing", changing)
    # Without `again` the training pairs are not sampled anew, with right labels.
    return replace(pairs, dataset=dataset, again=None)


def _with_column(dataset: Any, name: str, values: list[Any]) -> Any:
    return dataset.remove_columns(name).add_column(name, values)


def _random_subspaces(scoring: Scoring) -> Made:
    alignment, n = scoring.alignment, scoring.trust.random_subspaces
    if not has_random_subspace(alignment):
        raise NotApplicableError("no random subspace of equal rank differs from the trained one")
    # `read_controls` draws with the same seed, so it splits these very subspaces.
    draws = random_subspaces(alignment, scoring.seed, n)
    return {Arm("random_subspace", number): other for number, other in enumerate(draws)}


def _placebos(scoring: Scoring) -> Made:
    # The batches decide which pair is another one's placebo, so their size is always the default.
    # A pair alone in its batch would be its own placebo. A pair of another variable has no
    # difference to give. Hence `apart`.
    return {
        arm: outcomes(other, scoring.encoded, apart=True)
        for arm, other in placebos(scoring.alignment, scoring.seed).items()
    }


def _seeds(scoring: Scoring) -> Made:
    """Other draws of the start, on the same pairs in the same order."""
    # The alignment itself is the first of the seeds.
    return {
        Arm("seeds", number): fresh(scoring.alignment, scoring.seed + number)
        for number in range(1, scoring.trust.seeds)
    }


def _wrong_site(scoring: Scoring) -> Made:
    """The same intervention at a site that sees no token that the variable depends on."""
    elsewhere = scoring.trust.wrong_site
    moved = partial(displaced, elsewhere=elsewhere)
    try:
        wrong = fresh(scoring.alignment, scoring.seed, moved=moved)
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


def _shuffled_label(scoring: Scoring) -> Made:
    """The same claim; the labels of its training and validation pairs are permuted."""
    if not any(p.requires_grad for p in scoring.alignment.parameters()):
        raise NotApplicableError("nothing is trained, so the labels have no part in it")
    return {Arm("shuffled_label"): fresh(scoring.alignment, scoring.seed)}


def _untrained_network(scoring: Scoring) -> Made:
    """The same claim on random weights.

    It gets the trained network's prompts, which are not filtered again.
    """
    try:
        network = untrained(scoring.network, scoring.seed)
    except ValueError as error:
        raise NotApplicableError(str(error)) from error
    other = fresh(scoring.alignment, scoring.seed, network=network)
    # A store is of one network.
    other.store = ActivationStore(network.model)
    return {Arm("untrained_network"): other}


def read_controls(
    alignment: Alignment, read: Mapping[str, Tensor], seed: int, n_random: int
) -> dict[Arm, Alignment]:
    """Alignments to compare a read part with.

    `read_part/vanilla` swaps all that is read. The draws of `read_part/random_subspace` are the
    read parts of the same draws of `random_subspace`.
    """
    others = {Arm("read_part/vanilla"): swapping(alignment, read)}
    for number, random in enumerate(random_subspaces(alignment, seed, n_random)):
        part = split_by_reading(random, read)["read_part"]
        others[Arm("read_part/random_subspace", number)] = part
    return others


def _read_parts(scoring: Scoring) -> Made:
    alignment, trust = scoring.alignment, scoring.trust
    read = scoring.spaces.get("read")
    if not read:
        raise NotApplicableError(
            f"{alignment.interventions} swap no linear subspace of one position at a time"
        )
    controls = read_controls(alignment, read, scoring.seed, trust.random_subspaces)
    parts = split_by_reading(alignment, read)
    return {Arm(name): part for name, part in parts.items()} | controls


def _inert_resampled(scoring: Scoring) -> Made:
    right = inert_resampled(
        scoring.alignment, scoring.encoded, seed=scoring.seed, batch_size=scoring.batch_size
    )
    return {Arm("inert_resampled"): right}


class Recipe(NamedTuple):
    """How a kind of controls is made.

    make: gives one or several; raises NotApplicableError, which says why, where there is none.
    needs: "quick", made at every level of trust. "full", made on the test split with full trust.
        "trained", made as "full" and trained on the alignment's pairs. "shuffled", trained on pairs
        with shuffled labels.
    """

    make: Callable[[Scoring], Made]
    needs: str = "quick"


RECIPES: Mapping[str, Recipe] = {
    "vanilla": Recipe(lambda scoring: {Arm("vanilla"): vanilla(scoring.alignment)}),
    "random_subspace": Recipe(_random_subspaces),
    "pca_subspace": Recipe(pca_subspace),
    "placebos": Recipe(_placebos),
    "no_intervention": Recipe(
        lambda scoring: {Arm("no_intervention"): scoring.outcomes(scoring.alignment, edited=False)}
    ),
    "seeds": Recipe(_seeds, "trained"),
    "lower_ranks": Recipe(lower_ranks, "trained"),
    "wrong_site": Recipe(_wrong_site, "trained"),
    "shuffled_label": Recipe(_shuffled_label, "shuffled"),
    "untrained_network": Recipe(_untrained_network, "trained"),
    "read_parts": Recipe(_read_parts, "full"),
    "majority": Recipe(majority),
    "inert_resampled": Recipe(_inert_resampled),
}
"""In the order of rows; a key is the kind, and what makes it names the rows."""


def controls_of(scoring: Scoring) -> tuple[Made, dict[str, str]]:
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
        is_trained = needs in ("trained", "shuffled")
        try:
            if is_trained:
                _check_trainable(scoring)
            of_kind: dict[Arm, Any] = dict(make(scoring))
        except NotApplicableError as error:
            missing[kind] = str(error)
            continue
        controls |= of_kind
        for arm, control in of_kind.items() if is_trained else ():
            trainings.setdefault((needs, control.network), {})[str(arm)] = control
    for (needs, _), side_by_side in trainings.items():
        pairs = scoring.pairs
        if needs == "shuffled":
            pairs = shuffled(pairs, scoring.seed)
        scoring.refit(side_by_side, pairs, scoring.seed)
    return controls, missing


def _check_trainable(scoring: Scoring) -> None:
    """Raise NotApplicableError where the pairs lack what a training needs."""
    pairs = scoring.pairs
    lacking = sorted({"train", "validation"} - set(pairs.dataset["split"]))
    lacking += sorted({str(v) for v in scoring.alignment.variables} - set(pairs.variables))
    if lacking:
        raise NotApplicableError(f"the pairs lack {', '.join(lacking)}")
