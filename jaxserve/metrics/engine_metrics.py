"""From step records to counters: the engine's side of every metric in `metrics.catalog`.

An observer of the engine. What is said once a token is counted by groups: tokens of a step that waited equally long are
one observation, and in a step of decodes almost all do.
"""

from jaxserve.core.events import Finished, Preempted, Refused, TokenSampled
from jaxserve.core.plan import NO_BUCKET, MoveKind
from jaxserve.core.sequence import FinishReason, Sequence
from jaxserve.core.step_record import ScheduledStep, StepRecord
from jaxserve.metrics.catalog import BOUNDS
from jaxserve.metrics.counts import Counts
from jaxserve.metrics.history import History


class EngineMetrics:
    """One writer: the engine's thread. `counts` may be read by others; `history` is read between steps."""

    def __init__(self) -> None:
        self.counts = Counts(BOUNDS)
        self.history = History()
        self._last_token_s: dict[Sequence, float] = {}
        self._stalled_since: dict[Sequence, float] = {}
        self._stalled_s: dict[Sequence, float] = {}

    def observe(self, record: StepRecord) -> None:
        if record.step is not None:
            self._count_step(record.step, record)
            self.history.add_step(record)
        now, last_token_s = record.now, self._last_token_s
        gaps: dict[tuple[str, float | None], int] = {}
        ended: list[tuple[Sequence, FinishReason]] = []
        for event in record.events:
            if type(event) is TokenSampled:
                sequence = event.sequence
                before = last_token_s.get(sequence)
                if before is None:
                    self._first_token(sequence, now)
                key = (sequence.tenant, before)
                gaps[key] = gaps.get(key, 0) + 1
                last_token_s[sequence] = now
                if event.finish is not None:
                    ended.append((sequence, event.finish))
            elif type(event) is Finished:
                ended.append((event.sequence, event.reason))
                if event.nonfinite:
                    self.counts.add("nonfinite_logits")
            elif type(event) is Preempted:
                self._preempted(event, now)
            elif type(event) is Refused:
                self.counts.add("admission_rejections", labels=(event.reason,))
                self.counts.add("tenant_rejections", labels=(event.tenant, event.reason))
                if event.reason != "invalid":
                    self.history.add_refusal(event.tenant, event.reason, now)
        self._count_gaps(gaps, now)
        for sequence, reason in ended:
            self._ended(sequence, reason, now)

    # --- steps ------------------------------------------------------------------------------------------------

    def _count_step(self, step: ScheduledStep, record: StepRecord) -> None:
        counts, plan = self.counts, step.plan
        for move in plan.moves:
            if move.kind is not MoveKind.DROP:
                counts.add("kv_moved_blocks", labels=(move.source.value, move.target.value))
        for sequence in step.admitted:
            if (since := self._stalled_since.pop(sequence, None)) is not None:
                self._stalled_s[sequence] = self._stalled_s.get(sequence, 0.0) + record.now - since
        if plan.bucket is NO_BUCKET:
            counts.add("steps", labels=("moves",))
            return
        decodes, tokens = len(plan.decodes), plan.num_tokens
        kind = ("mixed" if plan.prefills else "decode") if decodes else "prefill"
        counts.add("steps", labels=(kind,))
        counts.add("bucket_steps", labels=(str(plan.bucket),))
        counts.add("step_tokens", decodes, ("decode",))
        counts.add("step_tokens", tokens - decodes, ("prefill",))
        counts.add("step_tokens", plan.bucket.tokens - tokens, ("padding",))
        counts.observe("iteration_tokens_total", tokens)
        counts.observe("step_time_seconds", record.seconds)
        if record.predicted_s > 0.0:
            counts.add("step_measured_seconds", record.seconds)
            counts.add("step_predicted_seconds", record.predicted_s)

    # --- sequences --------------------------------------------------------------------------------------------

    def _first_token(self, sequence: Sequence, now: float) -> None:
        counts, tenant = self.counts, (sequence.tenant,)
        waited = now - received_s(sequence)
        prompt = sequence.num_prompt
        counts.observe("time_to_first_token_seconds", waited)
        counts.observe("tenant_time_to_first_token_seconds", waited, labels=tenant)
        counts.add("prompt_tokens", prompt)
        counts.add("prompt_tokens_cached", min(sequence.num_cached, prompt))
        counts.add("tenant_prompt_tokens", prompt, tenant)
        counts.observe("request_prompt_tokens", prompt)
        counts.observe("request_uncached_prompt_tokens", max(prompt - sequence.num_cached, 0))
        self._judge(sequence, "ttft", waited)
        self.history.add_point(sequence, "ttft", waited, sequence.ttft_slo_s, now)

    def _count_gaps(self, gaps: dict[tuple[str, float | None], int], now: float) -> None:
        """`gaps`: how many tokens, by tenant and by when the token before was known; None: a first token."""
        for (tenant, before), count in gaps.items():
            self.history.add_tokens(tenant, count, now)
            self.counts.add("generation_tokens", count)
            self.counts.add("tenant_generation_tokens", count, (tenant,))
            if before is not None:
                self.counts.observe("inter_token_latency_seconds", now - before, count)
                self.counts.observe("tenant_inter_token_latency_seconds", now - before, count, (tenant,))

    def _preempted(self, event: Preempted, now: float) -> None:
        self.counts.add("num_preemptions")
        self.counts.add("preemptions", labels=("recompute" if event.tier is None else event.tier.value,))
        self.counts.add("tenant_preemptions", labels=(event.sequence.tenant,))
        self._stalled_since[event.sequence] = now

    def _ended(self, sequence: Sequence, reason: FinishReason, now: float) -> None:
        counts, tenant = self.counts, sequence.tenant
        last = self._last_token_s.pop(sequence, None)
        if (since := self._stalled_since.pop(sequence, None)) is not None:
            self._stalled_s[sequence] = self._stalled_s.get(sequence, 0.0) + now - since
        stalled = self._stalled_s.pop(sequence, None)
        end = now if last is None else last
        self.history.add_request(sequence, reason, received_s(sequence), end, stalled or 0.0, now)
        counts.add("request_success", labels=(reason.value,))
        counts.add("tenant_requests", labels=(tenant, reason.value))
        if last is None:
            self._judge_the_unanswered(sequence, reason, now)
        counts.observe("request_num_preemptions", sequence.preemptions)
        if stalled is not None:
            counts.observe("request_stalled_seconds", stalled)
        if reason not in (FinishReason.STOP, FinishReason.LENGTH):
            return
        counts.observe("request_generation_tokens", sequence.num_outputs)
        counts.observe("request_max_num_generation_tokens", sequence.max_len - sequence.num_prompt)
        self._time(sequence, end, now)

    def _time(self, sequence: Sequence, end: float, now: float) -> None:
        """Where the time of a sequence that came to its end went."""
        counts, tenant = self.counts, (sequence.tenant,)
        start, first = sequence.first_scheduled_s, sequence.first_token_s
        counts.observe("e2e_request_latency_seconds", end - received_s(sequence))
        counts.observe("tenant_e2e_request_latency_seconds", end - received_s(sequence), labels=tenant)
        assert start is not None, "a sequence ended by itself without having run"
        counts.observe("request_queue_time_seconds", start - sequence.queued_s)
        counts.observe("tenant_queue_time_seconds", start - sequence.queued_s, labels=tenant)
        counts.observe("request_inference_time_seconds", end - start)
        if first is None:
            return
        counts.observe("request_prefill_time_seconds", first - start)
        counts.observe("request_decode_time_seconds", end - first)
        if sequence.num_outputs > 1:
            gap = (end - first) / (sequence.num_outputs - 1)
            counts.observe("request_time_per_output_token_seconds", gap)
            counts.observe("tenant_time_per_output_token_seconds", gap, labels=tenant)
            self._judge(sequence, "tpot", gap)
            self.history.add_point(sequence, "tpot", gap, sequence.tpot_slo_s, now)

    def _judge_the_unanswered(self, sequence: Sequence, reason: FinishReason, now: float) -> None:
        """No first token came: a failure misses its objective, and so does who gave up when it was over already."""
        ended_s = now if sequence.finished_s is None else sequence.finished_s
        slo_s, waited = sequence.ttft_slo_s, ended_s - received_s(sequence)
        if reason is FinishReason.ERROR:
            self._judge(sequence, "ttft", float("inf"))
            return
        self._judge(sequence, "ttft", waited, only_missed=True)
        if slo_s is not None and waited > slo_s:
            self.history.add_point(sequence, "ttft", waited, slo_s, now)

    def _judge(self, sequence: Sequence, objective: str, seconds: float, only_missed: bool = False) -> None:
        """By what its tenant was promised, and by what it wants itself: series of their own, so that no request can
        spoil the first. `only_missed`: count it only where it missed."""
        request = sequence.request
        promised, own = (
            (sequence.promised_ttft_s, request.ttft_slo_s)
            if objective == "ttft"
            else (sequence.promised_tpot_s, request.tpot_slo_s)
        )
        labels = (sequence.tenant, objective)
        for series, slo_s in (("slo_requests", promised), ("request_slo_requests", own)):
            if slo_s is not None and (seconds > slo_s or not only_missed):
                self.counts.add(series, labels=labels)
                self.counts.add(f"{series}_met", seconds <= slo_s, labels)


def received_s(sequence: Sequence) -> float:
    """When the request came in, on the engine's clock: when it reached the scheduler, if nobody noted it before."""
    return sequence.request.arrival_s or sequence.queued_s
