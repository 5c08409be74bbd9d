"""The sampler against its oracle: one program of each variant at one shape, whatever the parameters."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.typing import NDArray

from jaxserve.core.plan import NO_TOKEN
from jaxserve.core.sampling import MAX_BANNED
from jaxserve.runtime.sampling.sampler import (
    LogitsState,
    RowParams,
    Sampled,
    SlotState,
    Variant,
    _as_gumbel,
    init_slot_state,
    load_slot,
    sample,
)
from tests.runtime.sampling.sampling_oracle import Row, distribution, keep, log_softmax, process

ROWS, VOCAB, CONTEXT, SLOTS = 512, 300, 32, 8  # 300: not a multiple of a block
Logits = NDArray[np.float32]

EVERYTHING = Row(
    prompt=(1, 2, 3, 3),
    output=(4, 5, 5, 7),
    temperature=1.3,
    top_k=20,
    top_p=0.9,
    min_p=0.02,
    presence=0.4,
    frequency=0.3,
    repetition=1.2,
    logit_bias={5: 2.0, 9: 3.0},
    banned=(9, 11),
    min_tokens=6,
)
CASES = {
    "plain": Row(),
    "cold": Row(temperature=0.4),
    "hot": Row(temperature=3.0),
    "top_k": Row(top_k=5),
    "top_p": Row(top_p=0.6),
    "top_k then top_p": Row(top_k=12, top_p=0.8, temperature=1.5),
    "min_p": Row(min_p=0.1, temperature=1.5),
    "min_p then top_p": Row(min_p=0.05, top_p=0.7, temperature=2.0),
    "repetition": Row(prompt=(3, 4, 4), output=(5, 6), repetition=3.0),
    "presence": Row(prompt=(3, 4), output=(0, 1, 1), presence=1.5),
    "frequency": Row(prompt=(3, 4), output=(0, 1, 1, 1), frequency=0.7),
    "negative penalties": Row(output=(250, 251), presence=-2.0, frequency=-2.0, repetition=0.5),
    "logit_bias": Row(logit_bias={0: -100.0, 299: 6.0}),
    "banned": Row(banned=(0, 1, 2), min_tokens=1),
    "no longer banned": Row(output=(5,), banned=(0, 1, 2), min_tokens=1),
    "everything": EVERYTHING,
}


@pytest.fixture(autouse=True)
def _strict() -> Iterator[None]:
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


@cache
def program(variant: Variant, processor: Callable[..., jax.Array] | None = None) -> Callable[..., tuple]:
    return jax.jit(partial(sample, variant=variant, processor=processor))


def pack(rows: Sequence[Row], seed: int = 0) -> tuple[RowParams, SlotState]:
    """Row i of 512 is a draw of rows[i % len(rows)], seeded with seed + i; every slot is loaded."""
    state = init_slot_state(SLOTS, CONTEXT, VOCAB)
    tokens, bias_ids, bias_values, ban_ids, lengths = (np.array(x) for x in state)
    for slot, row in enumerate(rows):
        history = [*row.prompt, *row.output]
        tokens[slot, : len(history)] = history
        tokens[slot, len(history) :] = 42  # what a former sequence left behind must not count
        bias_ids[slot, : len(row.logit_bias)] = list(row.logit_bias)
        bias_values[slot, : len(row.logit_bias)] = list(row.logit_bias.values())
        ban_ids[slot, : len(row.banned)] = row.banned
    state = SlotState(*(jnp.asarray(x) for x in (tokens, bias_ids, bias_values, ban_ids, lengths)))
    index = np.arange(ROWS) % len(rows)
    each = [rows[i] for i in index]
    seeds = np.stack([np.zeros(ROWS), seed + np.arange(ROWS)], axis=1).astype(np.uint32)
    floats = {
        name: jnp.asarray([getattr(row, name) for row in each], jnp.float32)
        for name in ("temperature", "top_p", "min_p", "presence", "frequency", "repetition")
    }
    ints = {
        "slots": index,
        "positions": [len(row.prompt) + len(row.output) for row in each],
        "prompt_lens": [len(row.prompt) for row in each],
        "min_positions": [len(row.prompt) + row.min_tokens for row in each],
        "top_k": [row.top_k for row in each],
    }
    packed = {name: jnp.asarray(values, jnp.int32) for name, values in ints.items()}
    return RowParams(seeds=jnp.asarray(seeds), **floats, **packed), state


def draw(
    logits: Logits, rows: Sequence[Row], variant: Variant = Variant.FULL, seed: int = 0, **options: object
) -> Sampled:
    """Samples of `rows`, each with its row of `logits` [n, V], in turns."""
    params, state = pack(rows, seed)
    repeated = jnp.asarray(logits[np.arange(ROWS) % len(rows)])
    sampled, _ = program(variant, **options)(repeated, params, state)
    return jax.tree.map(np.asarray, sampled)


def random_logits(rows: int, seed: int = 0, scale: float = 2.0) -> Logits:
    return (np.random.default_rng(seed).normal(size=(rows, VOCAB)) * scale).astype(np.float32)


def decaying_logits(rows: int) -> Logits:
    """A head of likely tokens and a long tail, the likeliest first."""
    return np.tile(-0.6 * np.log(1.0 + np.arange(VOCAB)) * 3, (rows, 1)).astype(np.float32)


def assert_drawn_from(tokens: NDArray[np.int32], expected: NDArray[np.float64]) -> None:
    """Nothing outside the support, and a chi-square within six standard deviations of its mean."""
    counts = np.bincount(tokens, minlength=len(expected)).astype(np.float64)
    assert counts[expected == 0.0].sum() == 0
    wanted = expected * len(tokens)
    common = wanted >= 5
    observed = np.append(counts[common], counts[~common].sum())
    wanted = np.append(wanted[common], wanted[~common].sum())
    observed, wanted = observed[wanted > 0], wanted[wanted > 0]
    freedom = len(wanted) - 1
    assert freedom > 0, "too few draws to tell anything"
    assert ((observed - wanted) ** 2 / wanted).sum() < freedom + 6 * np.sqrt(2 * freedom)


@pytest.fixture(scope="module")
def drawn() -> dict[str, NDArray[np.int32]]:
    """2,048 tokens of every case, all from one program."""
    logits, tokens = decaying_logits(SLOTS), {}
    names = list(CASES)
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        for group in (names[:8], names[8:]):
            rows = [CASES[name] for name in group]
            draws = [draw(logits, rows, seed=1000 * i).tokens.reshape(-1, len(rows)) for i in range(32)]
            tokens |= dict(zip(group, np.concatenate(draws).T, strict=True))
    return tokens


@pytest.mark.parametrize("name", CASES)
def test_every_parameter_gives_the_distribution_it_should(name: str, drawn: dict[str, NDArray[np.int32]]) -> None:
    assert_drawn_from(drawn[name], distribution(decaying_logits(1)[0], CASES[name]))


def test_the_random_program_draws_from_the_whole_vocabulary() -> None:
    logits = random_logits(1, scale=1.0)
    tokens = [draw(logits, [Row(temperature=0.8)], Variant.RANDOM, seed=1000 * i).tokens for i in range(40)]
    assert_drawn_from(np.concatenate(tokens), distribution(logits[0], Row(temperature=0.8)))


@pytest.mark.parametrize("seed", range(4))
def test_greedy_takes_the_likeliest_token_after_penalties(seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits = random_logits(SLOTS, seed)
    rows = []
    for slot in range(SLOTS):
        likely = np.argsort(-logits[slot])[:30]  # so that what is penalized matters
        rows.append(
            Row(
                temperature=0.0,
                prompt=tuple(rng.choice(likely, 6)),
                output=tuple(rng.choice(likely, 8)),
                presence=rng.uniform(-2, 2),
                frequency=rng.uniform(-2, 2),
                repetition=rng.uniform(0.5, 2),
                logit_bias=dict(zip(rng.choice(likely, 5, replace=False).tolist(), rng.uniform(-3, 3, 5), strict=True)),
                banned=tuple(rng.choice(likely, 5)),
                min_tokens=int(rng.integers(0, 16)),
            )
        )
    expected = [int(np.argmax(process(logits[i], rows[i]))) for i in range(SLOTS)]
    assert draw(logits, rows).tokens[:SLOTS].tolist() == expected


def test_every_variant_gives_the_token_that_the_others_give() -> None:
    logits = random_logits(SLOTS, 3)
    logits[0, [7, 290]] = logits[0].max() + 1  # a tie: the lower id wins
    rows = [Row(temperature=t) for t in (0.0, 0.3, 1.0, 0.0, 2.5, 100.0, 1e-6, 0.7)]
    full, some = draw(logits, rows).tokens, draw(logits, rows, Variant.RANDOM).tokens
    assert (full == some).all()
    likeliest = draw(logits, rows, Variant.GREEDY).tokens
    assert likeliest[:SLOTS].tolist() == logits.argmax(axis=1).tolist()
    greedy = np.arange(ROWS) % SLOTS
    greedy = (greedy == 0) | (greedy == 3) | (greedy == 6)
    assert (full[greedy] == likeliest[greedy]).all()


def test_keeping_one_token_is_greedy_even_among_equals() -> None:
    logits = random_logits(4, 4)
    logits[:, [9, 100, 299]] = 11.0
    rows = [Row(top_k=1), Row(top_p=1e-6), Row(min_p=1.0, top_k=1), Row(temperature=100.0, top_k=1)]
    logits[3, 5] = np.nextafter(np.float32(11.0), np.float32(0))  # at this temperature of equal weight
    assert (draw(logits, rows).tokens == 9).all()


def test_a_token_depends_on_its_seed_and_position_only() -> None:
    rows, logits = list(CASES.values())[:SLOTS], random_logits(SLOTS, 5)
    params, state = pack(rows)
    repeated = jnp.asarray(logits[np.arange(ROWS) % SLOTS])
    order = np.random.default_rng(0).permutation(ROWS)
    shuffled = RowParams(*(x[order] for x in params))
    for variant in (Variant.RANDOM, Variant.FULL):
        straight, _ = program(variant)(repeated, params, state)
        permuted, _ = program(variant)(repeated[order], shuffled, state)
        for a, b in zip(straight, permuted, strict=True):
            assert a is b is None or np.array_equal(np.asarray(a)[order], np.asarray(b))


def test_seeds_and_positions_change_the_token_and_both_seed_words_count() -> None:
    params, state = pack([Row()])
    logits = np.where(np.arange(VOCAB) < 20, 0.0, -np.inf).astype(np.float32)
    flat = jnp.asarray(np.tile(logits, (ROWS, 1)))
    same_seed = params._replace(seeds=jnp.full((ROWS, 2), 5, jnp.uint32))
    by_position = same_seed._replace(positions=jnp.arange(ROWS, dtype=jnp.int32))  # past the context: not written
    high_word = params._replace(seeds=params.seeds[:, ::-1])
    tokens = [
        np.asarray(program(Variant.RANDOM)(flat, p, state)[0].tokens) for p in (same_seed, by_position, high_word)
    ]
    assert len(set(tokens[0].tolist())) == 1
    for varied in tokens[1:]:
        assert_drawn_from(varied, np.exp(logits) / 20)


def test_noise_is_finite_at_both_ends() -> None:
    noise = np.asarray(_as_gumbel(jnp.asarray([0, 1, 2**31, 2**32 - 2, 2**32 - 1], jnp.uint32)))
    assert np.isfinite(noise).all()
    assert (np.diff(noise) <= 0).all()
    assert noise[0] > 22 and noise[-1] < -2.5


def test_tokens_are_written_where_they_belong_and_padding_goes_to_the_scratch_row() -> None:
    params, state = pack([Row(prompt=(1,) * (2 + slot)) for slot in range(SLOTS)])
    real = np.arange(ROWS) < SLOTS
    params = params._replace(
        slots=jnp.asarray(np.where(real, params.slots, SLOTS), jnp.int32),
        positions=jnp.asarray(np.where(real, params.positions, 0), jnp.int32),
    )
    before = np.array(state.tokens)
    for variant in Variant:
        sampled, after = program(variant)(jnp.asarray(random_logits(ROWS)), params, state)
        expected = before.copy()
        expected[np.arange(SLOTS), 2 + np.arange(SLOTS)] = sampled.tokens[:SLOTS]
        assert np.array_equal(np.asarray(after.tokens)[:SLOTS], expected[:SLOTS])
        assert np.array_equal(np.asarray(after.lengths)[:SLOTS], 3 + np.arange(SLOTS)), "past the sampled token"
        lists = "bias_ids", "bias_values", "ban_ids"
        assert all(np.array_equal(getattr(after, name), getattr(state, name)) for name in lists)


def test_loading_a_slot_leaves_the_others_alone() -> None:
    state = init_slot_state(SLOTS, CONTEXT, VOCAB)
    new = (
        jnp.arange(CONTEXT, dtype=jnp.int32),
        jnp.full((300,), 7, jnp.int32),
        jnp.full((300,), 0.5, jnp.float32),
        jnp.full((MAX_BANNED,), 3, jnp.int32),
    )
    loaded = jax.jit(load_slot)(state, jnp.int32(2), *new)
    assert np.array_equal(loaded.lengths, state.lengths), "the sampler sets lengths"
    for held, was, row in zip(loaded[:4], state[:4], new, strict=True):
        assert np.array_equal(held[2], row)
        assert np.array_equal(np.delete(held, 2, axis=0), np.delete(was, 2, axis=0))


def test_degenerate_logits_give_no_token_and_write_one_of_the_vocabulary() -> None:
    """The step in flight reads what is written."""
    one_left = np.full(VOCAB, -np.inf, np.float32)
    one_left[297] = -50.0
    nothing_left = np.full(VOCAB, -np.inf, np.float32)
    forced = random_logits(1)[0]
    forced[[5, 6]] = np.inf
    broken = random_logits(1)[0]
    broken[299] = np.nan
    huge = np.full(VOCAB, -3e38, np.float32)
    huge[4] = 3e38
    logits = np.stack([one_left, nothing_left, forced, broken, huge])
    truncated = Row(temperature=0.7, top_p=0.6, top_k=3, min_p=0.1)
    params, state = pack([truncated] * 5)
    index = np.arange(ROWS) % 5
    for variant in Variant:
        sampled, after = program(variant)(jnp.asarray(logits[index]), params, state)
        tokens = np.asarray(sampled.tokens)
        assert [set(tokens[index == i].tolist()) for i in range(5)] == [{297}, {NO_TOKEN}, {NO_TOKEN}, {NO_TOKEN}, {4}]
        written = np.asarray(after.tokens)[np.arange(5), int(params.positions[0])]
        assert written[0] == 297 and written[4] == 4 and np.all((written >= 0) & (written < VOCAB))


def test_everything_banned_but_one_and_the_last_one_too() -> None:
    logits = decaying_logits(2)
    logits[:, MAX_BANNED:] = -np.inf
    banned = tuple(range(MAX_BANNED))
    rows = [Row(banned=banned[:-1], min_tokens=1), Row(banned=banned, min_tokens=1)]
    tokens = draw(logits, rows).tokens
    assert set(tokens[::2].tolist()) == {MAX_BANNED - 1} and set(tokens[1::2].tolist()) == {NO_TOKEN}


def test_a_processor_sees_penalized_logits_and_decides() -> None:
    def few_even_tokens(logits: jax.Array, state: LogitsState) -> jax.Array:
        assert state.tokens.shape == (ROWS, CONTEXT) and state.rows.slots.shape == (ROWS,)
        token = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 1)
        return jnp.where((token % 2 == 1) | (token >= 40) | jnp.isinf(logits), -jnp.inf, 0.0)

    tokens = draw(decaying_logits(1), [Row(banned=(0, 2), min_tokens=1)], processor=few_even_tokens).tokens
    allowed = np.isin(np.arange(VOCAB), range(4, 40, 2))
    assert_drawn_from(tokens, allowed / allowed.sum())


def test_logprobs_are_those_of_the_raw_logits() -> None:
    logits = random_logits(SLOTS, 6)
    logits[1, [8, 250, 251]] = logits[1].max() + 0.5
    sampled = draw(logits, [CASES["hot"], CASES["everything"]] * 4)
    expected = log_softmax(logits)
    for i in range(ROWS):
        row, token = expected[i % SLOTS], sampled.tokens[i]
        assert sampled.logprobs[i] == pytest.approx(row[token], abs=1e-5)
        assert sampled.ranks[i] == 1 + (row > row[token]).sum()
        order = np.argsort(-logits[i % SLOTS], kind="stable")[:20]
        assert sampled.top_ids[i].tolist() == order.tolist()
        np.testing.assert_allclose(sampled.top_logprobs[i], row[order], atol=1e-5)


def test_parameters_never_recompile() -> None:
    for variant in Variant:
        compiled = program(variant)._cache_size()
        draw(random_logits(1), [EVERYTHING], variant)
        draw(random_logits(1), [Row(temperature=0.0, seed=9)], variant)
        assert program(variant)._cache_size() == max(compiled, 1)


def test_the_oracle_keeps_what_the_definitions_say() -> None:
    weights = np.array([0.1, 0.4, 0.1, 0.4])
    assert keep(weights, 1, 1.0).tolist() == [False, True, False, False]
    assert keep(weights, 3, 1.0).tolist() == [True, True, False, True]
    assert keep(weights, 0, 0.4).tolist() == [False, True, False, False]
    assert keep(weights, 0, 0.41).tolist() == [False, True, False, True]
    assert Counter(keep(weights, 0, 1.0).tolist()) == {True: 4}


@pytest.mark.parametrize("variant", list(Variant))
def test_a_row_whose_logits_are_not_finite_has_no_token(variant: Variant) -> None:
    """Wherever it is in the row; -inf beside a finite logit is a ban, and the other rows are as they were."""
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((8, VOCAB)).astype(np.float32)
    spoilt = logits.copy()
    for row, (value, at) in enumerate(
        ((np.nan, 0), (np.nan, 131), (np.nan, VOCAB - 1), (np.inf, 40), (-np.inf, slice(None)))
    ):
        spoilt[row, at] = value
    spoilt[5, 1:] = -np.inf
    spoilt[6, np.argmin(logits[6])] = -np.inf
    for temperature in (0.0, 1.0) if variant is not Variant.GREEDY else (0.0,):
        rows = [Row(temperature=temperature)] * 8
        good, found = (draw(x, rows, variant).tokens.reshape(-1, 8) for x in (logits, spoilt))
        assert np.all(found[:, :5] == NO_TOKEN) and np.all(found[:, 5] == 0)
        assert np.all(good >= 0) and np.array_equal(found[:, 7], good[:, 7])
        if not temperature:
            assert np.array_equal(found[:, 6], good[:, 6])


def test_bans_of_every_token_but_one_are_no_error() -> None:
    small = {token: -100.0 for token in range(300)}
    rows = [Row(banned=tuple(range(72)), min_tokens=1), Row(logit_bias=small)]
    assert np.all(draw(np.zeros((2, VOCAB), np.float32), rows).tokens >= 0)


@pytest.mark.parametrize("value", [np.nan, -np.inf, np.inf])
def test_what_a_processor_makes_of_a_row_counts_too(value: float) -> None:
    """+inf forces a token; NaN, and a row of -inf, leave none."""

    def spoil(logits: jax.Array, state: LogitsState) -> jax.Array:
        return jnp.where(state.rows.slots[:, None] == 1, jnp.float32(value), logits)

    rows = [Row(), Row(), Row()]
    logits = np.random.default_rng(1).standard_normal((3, VOCAB)).astype(np.float32)
    plain, found = (draw(logits, rows, processor=processor).tokens for processor in (None, spoil))
    for row in (0, 2):
        np.testing.assert_array_equal(found[row::3], plain[row::3])
    assert np.all(found[1::3] >= 0) if value == np.inf else np.all(found[1::3] == NO_TOKEN)
