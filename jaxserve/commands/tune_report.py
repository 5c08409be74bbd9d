"""What a search found, for the terminal: the winner, its rivals, what each choice is worth, why the others fail."""

from collections import Counter
from typing import Any

from jaxserve.commands.tables import table
from jaxserve.tune.search import Found
from jaxserve.tune.trial import Problem, Trial


def report(problem: Problem, found: Found) -> str:
    best = found.best
    lines = [
        f"{found.candidates} candidates; {len(found.trials)} tried, as much as {found.evaluations:.1f} runs of all "
        f"{found.requests:,} requests. Step times: {problem.cost.source}",
        "",
        _best(problem, best),
        "",
        "the best on all requests",
        _rivals(problem, [t for t in found.trials if t.requests == found.requests][:8]),
    ]
    if found.cut_short:
        lines.insert(1, "The time was up before all was tried: --time-budget gives it more, --candidates less to do.")
    if found.worths:
        lines += ["", f"what each choice is worth: {compared(found)}, changed", _worths(found)]
    if fails := reasons(found):
        lines += ["", "why candidates fail", table(["candidates", "reason"], fails)]
    return "\n".join(lines)


def _best(problem: Problem, best: Trial) -> str:
    unit = {"goodput": "good requests/s", "throughput": "tokens/s", "cost": "tokens/s a replica"}[problem.objective]
    verdict = "holds" if best.holds else f"NOTHING HOLDS; nearest: {best.why}"
    shown = ", ".join(f"{name} {_word(value)}" for name, value in best.choice.items()) or "as configured"
    return f"best: {shown}\n      {best.objective:.4g} {unit}, {verdict}"


def _rivals(problem: Problem, trials: list[Trial]) -> str:
    names = list(trials[0].choice)
    bounds = [str(bound) for bound in problem.bounds]
    rows = [
        [*(_word(t.choice[n]) for n in names), t.programs, t.worth, t.goodput, *(t.measured.get(b) for b in bounds)]
        for t in trials
    ]
    return table([*names, "programs", "worth", "goodput", *bounds], rows)


def compared(found: Found) -> str:
    """What the worths stand beside: the winner, or the one that a neighbour of its has taken over from."""
    before = {w.name: w.chosen for w in found.worths if w.chosen != found.best.choice[w.name]}
    if not before:
        return "the winner"
    return f"the winner with {', '.join(f'{n} {_word(v)}' for n, v in before.items())}, as it was before the last step"


def _worths(found: Found) -> str:
    rows = [
        [
            w.name,
            _word(w.chosen),
            _word(w.other),
            f"{w.share:+.1%}" if w.share == w.share else None,
            w.trial.why or "holds",
        ]
        for w in found.worths
    ]
    return table(["choice", "chosen", "instead", "worth", "and then"], rows)


def reasons(found: Found) -> list[tuple[int, str]]:
    """How many candidates failed for which reason, at their last trial; measured values left out."""
    counts = Counter(t.why.partition(":")[0] if ": was " in t.why else t.why for t in found.trials if t.why)
    return [(count, f"{why} does not hold" if "<" in why else why) for why, count in counts.most_common(8)]


def _word(value: Any) -> str:
    return "none" if value is None else str(value)
