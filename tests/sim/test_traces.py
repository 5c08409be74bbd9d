"""Traces: what is read, and what is said of what cannot be read."""

import gzip
import random
from pathlib import Path

import pytest

from jaxserve.core.errors import ConfigError
from jaxserve.sim.arrivals import Arrival
from jaxserve.sim.traces import merged, read_trace, spread, window

GOOD = '{"arrival_s": 0, "prompt_tokens": 5, "output_tokens": 2}'


def write(tmp_path: Path, *lines: str) -> Path:
    path = tmp_path / "trace.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_all_fields_are_read(tmp_path: Path) -> None:
    path = write(
        tmp_path, GOOD, "", '{"arrival_s": 1.5, "prompt_tokens": 600, "output_tokens": 3, "tenant": "chat", '
        '"kind": "long", "prefix_blocks": [7, 8], "block_tokens": 512}',
        '{"arrival_s": 2, "prompt_tokens": 6, "output_tokens": 3, "n": 4, "cache_salt": "x", "abort_s": 1, '
        '"abort_tokens": 2, "priority": -1, "ttft_slo_s": 0.5, "tpot_slo_s": 0.05}',
    )  # fmt: skip
    assert list(read_trace(path)) == [
        Arrival(0.0, 5, 2),
        Arrival(1.5, 600, 3, "chat", "long", (7, 8), 512),
        Arrival(
            2.0, 6, 3, n=4, cache_salt="x", abort_s=1.0, abort_tokens=2, priority=-1, ttft_slo_s=0.5, tpot_slo_s=0.05
        ),
    ]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", r"2: not JSON .*at column 2.*as in \{\"arrival_s\""),
        ("[1]", "2: expected one object a line, as in"),
        ('{"arrival_s": -1, "prompt_tokens": 1, "output_tokens": 1}', "2: arrival_s = -1: expected seconds"),
        ('{"arrival_s": NaN, "prompt_tokens": 1, "output_tokens": 1}', "arrival_s = nan"),
        ('{"arrival_s": "1", "prompt_tokens": 1, "output_tokens": 1}', "arrival_s = '1'"),
        ('{"arrival_s": 1, "output_tokens": 1}', "prompt_tokens = None: expected a whole number"),
        ('{"arrival_s": 1, "prompt_tokens": 1.5, "output_tokens": 1}', "prompt_tokens = 1.5"),
        ('{"arrival_s": 1, "prompt_tokens": 1, "output_tokens": 0}', "output_tokens = 0"),
        ('{"arrival_s": 1, "prompt_tokens": 1, "output_tokens": true}', "output_tokens = True"),
        ('{"arrival_s": 1, "prompt_tokens": 1, "output_tokens": 1, "tenant": 4}', "tenant = 4: expected a string"),
        ('{"arrival_s": 1, "prompt_tokens": 1, "output_tokens": 1, "n": 0}', "n = 0: expected a whole number"),
        ('{"arrival_s": 1, "prompt_tokens": 1, "output_tokens": 1, "abort_tokens": 0.5}', "abort_tokens = 0.5"),
        ('{"arrival_s": 1, "prompt_tokens": 1, "output_tokens": 1, "abort_s": 0}', "abort_s = 0: expected seconds"),
        ('{"arrival_s": 1, "prompt_tokens": 1, "output_tokens": 1, "priority": 1.5}', "priority = 1.5"),
        ('{"arrival_s": 1, "prompt_tokens": 1, "output_tokens": 1, "tenent": "a"}', "tenent: an unknown field; known"),
        ('{"arrival_s": 1, "prompt_tokens": 1, "output_tokens": 1, "prefix_blocks": 4}', "prefix_blocks = 4"),
        ('{"arrival_s": 1, "prompt_tokens": 1, "output_tokens": 1, "prefix_blocks": ["a"]}', "expected a list of ids"),
        ('{"arrival_s": 1, "prompt_tokens": 9, "output_tokens": 1, "prefix_blocks": [1, 2]}', "2 blocks of 512 tokens"),
    ],
)
def test_a_malformed_trace_names_line_field_and_expectation(tmp_path: Path, line: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        list(read_trace(write(tmp_path, GOOD, line)))


def test_what_is_out_of_order_or_unreadable_is_said(tmp_path: Path) -> None:
    path = write(tmp_path, '{"arrival_s": 2, "prompt_tokens": 5, "output_tokens": 2}', GOOD)
    with pytest.raises(ConfigError, match=r"2: arrival_s = 0\.0: expected at least 2\.0"):
        list(read_trace(path))
    with pytest.raises(ConfigError, match="cannot be read"):
        list(read_trace(tmp_path / "none.jsonl"))
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not a text file"):
        list(read_trace(path))


def test_a_compressed_trace_is_read_like_a_plain_one(tmp_path: Path) -> None:
    plain = write(tmp_path, GOOD, GOOD)
    packed = tmp_path / "trace.jsonl.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert list(read_trace(packed)) == list(read_trace(plain)) and len(list(read_trace(packed))) == 2


def test_a_window_is_moved_and_compressed() -> None:
    found = window([Arrival(at, 1, 1, prefix_blocks=(3,)) for at in (5.0, 10.0, 12.0, 20.0)], 10.0, 10.0, 2.0)
    assert [a.at_s for a in found] == [0.0, 1.0] and found[0].prefix_blocks == (3,)


def test_lists_are_merged_in_order_of_time() -> None:
    assert [a.at_s for a in merged([Arrival(1.0, 1, 1), Arrival(3.0, 1, 1)], [Arrival(2.0, 1, 1)])] == [1.0, 2.0, 3.0]


def test_coarse_stamps_are_spread_up_to_the_next_one() -> None:
    coarse = [Arrival(at, 1, n + 1) for n, at in enumerate((0.0, 0.0, 0.0, 3.0, 6.0, 6.0))]
    found = list(spread(coarse, random.Random(1)))
    times = [a.at_s for a in found]
    assert times == sorted(times) and [a.output_tokens for a in found] == [1, 2, 3, 4, 5, 6], "nobody overtakes"
    assert times[0] > 0.0 and times[2] < 3.0 == times[3] and times[4] > 6.0 and times[5] < 9.0, (
        "the last like the one before"
    )
    assert found == list(spread(coarse, random.Random(1)))


def test_mooncakes_own_lines_are_read(tmp_path: Path) -> None:
    path = tmp_path / "mooncake.jsonl"
    path.write_text(
        '{"timestamp": 0, "input_length": 1500, "output_length": 52, "hash_ids": [46, 47, 48]}\n'
        '{"timestamp": 27482, "input_length": 600, "output_length": 9, "hash_ids": [46, 2353]}\n'
    )
    first, second = read_trace(path)
    assert (first.at_s, first.prompt_tokens, first.output_tokens, first.prefix_blocks) == (0.0, 1500, 52, (46, 47, 48))
    assert second.at_s == pytest.approx(27.482) and second.prefix_blocks == (46, 2353) and second.block_tokens == 512
    path.write_text('{"timestamp": "0", "input_length": 1500, "output_length": 52, "hash_ids": []}\n')
    with pytest.raises(ConfigError, match="1: timestamp"):
        list(read_trace(path))
