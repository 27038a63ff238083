"""The last launches: the answer and its rival are timed again while step times leave the choice open."""

from collections.abc import Callable

from scaler.decide.config import BatchConfig
from scaler.measure.evidence import Evidence, plan_task
from scaler.probe.throughput import ThroughputRequest, probe_throughput
from scaler.records import ThroughputRecord

_SETTLED = 0.01  # expected regret that step times may leave
_MOST = 6  # launches
_FIRST_SEED = 100  # of these launches; those before have lower ones


def settle(evidence: Evidence, decide: Callable[[], BatchConfig]) -> BatchConfig:
    """Decide, and launch what the choice hangs on until step times settle it; give the last decision.

    A launch is worth most where two plans are close and known least: of the answer and its rival the one with
    fewer launches. What examples to target leave open is the search's to settle.
    """
    config = decide()
    for _ in range(_MOST):
        left, rival = config.choice.regret_step_time, config.choice.rival
        if left is None or rival is None or left <= _SETTLED:
            break
        runs = [r for r in evidence.records if isinstance(r, ThroughputRecord) and not r.held_out]
        pair = (config.chosen.plan, rival.plan)
        plan = min(pair, key=lambda own: sum(run.plan == own for run in runs))
        again = sum(run.plan == plan and run.seed >= _FIRST_SEED for run in runs)
        task = plan_task(probe_throughput, ThroughputRequest(plan, seed=_FIRST_SEED + again))
        if not evidence.ask("settling", [task], expected=_MOST):
            break
        config = decide()
    return config
