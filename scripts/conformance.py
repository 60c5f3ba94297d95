"""Every pipeline class of the installed diffusers as a policy: a tiny twin, a rollout, its replay, a gradient, a probe, LoRA.

    python scripts/conformance.py                  # all classes, writes mmalign/policies/CONFORMANCE.md and conformance.json
    python scripts/conformance.py Flux* --show     # some, to the screen, with tracebacks
"""

from __future__ import annotations

import argparse
import fnmatch
import inspect
import signal
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).resolve().parents[1] / "mmalign" / "policies"
PROMPTS = ["a red fox", "two blue birds"]


def classes() -> list[str]:
    """Names of all pipeline classes that can be made here."""
    import diffusers

    names = [name for name in dir(diffusers) if name.endswith("Pipeline") or "Pipeline" in name]
    found = []
    for name in names:
        kind = getattr(diffusers, name, None)
        if inspect.isclass(kind) and issubclass(kind, diffusers.DiffusionPipeline) and "__call__" in vars(kind):
            found.append(name)
    return found


def check(name: str) -> dict[str, Any]:
    """What one class can do. Keys: twin, replay, gradient, probe, lora (numbers, True, or a reason), seconds."""
    from mmalign.policies import twins
    from mmalign.policies.diffusers import diffusers as make

    began, row = time.monotonic(), {"name": name}
    pipe = twins.twin(name)
    row["twin"] = True
    call = twins.call_arguments(pipe)
    policy = make(pipe, num_inference_steps=4, call=call, device="cpu")
    rollout = policy.sample(PROMPTS, 1, torch.Generator().manual_seed(0))
    steps = policy.steps(rollout, torch.arange(2))
    row["replay"] = float((steps.log_probs.detach() - steps.old).abs().max())
    row["steps"], row["event"] = rollout.log_probs.shape[1], steps.event_size
    row["trained"] = int(rollout.mask[0].sum())
    steps.log_probs.sum().backward()
    norms = [float(p.grad.norm()) for p in policy.parameters().values() if p.grad is not None]
    row["gradient"] = max(norms, default=0.0)
    row["scheduler"] = type(pipe.scheduler).__name__
    row["modules"] = list(policy.denoisers)
    row["probe"] = _reason(lambda: probe(policy, rollout))
    row["lora"] = _reason(lambda: lora(name, call))
    row["seconds"] = time.monotonic() - began
    return row


def probe(policy: Any, rollout: Any) -> float:
    """The greatest difference between a vector of two times and one time after another."""
    from mmalign.types import Level

    times, levels = policy.schedule()
    columns = torch.tensor([0, min(2, len(times) - 1)])
    x = torch.stack([rollout.private["x"][c][row] for row, c in enumerate(columns.tolist())])
    level = Level(levels.signal[columns], levels.noise[columns])
    together = policy.probe(PROMPTS, x, times[columns], level).clean
    if not together.requires_grad:
        raise RuntimeError("the probe has no gradient")
    worst = 0.0
    for row in range(2):
        one = slice(row, row + 1)
        alone = policy.probe(PROMPTS[one], x[one], times[columns][one], Level(level.signal[one], level.noise[one])).clean
        worst = max(worst, float((alone[0] - together[row]).abs().max() / (1 + alone.abs().max())))
    return worst


def lora(name: str, call: dict[str, Any]) -> float:
    """The norm of the adapter's gradient, with targets as they are by default."""
    from mmalign.policies import twins
    from mmalign.policies.diffusers import diffusers as make

    policy = make(twins.twin(name), num_inference_steps=4, call=call, lora={"rank": 2}, device="cpu")
    rollout = policy.sample(PROMPTS, 1, torch.Generator().manual_seed(0))
    policy.steps(rollout, torch.arange(2), columns=torch.nonzero(rollout.private["random"]).flatten()[:1]).log_probs.sum().backward()
    return max(float(p.grad.norm()) for p in policy.parameters().values() if p.grad is not None)


def _too_long(*_: Any) -> None:
    raise TimeoutError("more than a minute")


def _reason(act: Any) -> Any:
    try:
        return act()
    except Exception as error:  # a class that breaks is a line in the table
        return f"{type(error).__name__}: {str(error).splitlines()[0][:160] if str(error) else ''}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=["*"])
    parser.add_argument("--show", action="store_true", help="to the screen only, with tracebacks")
    given = parser.parse_args()
    import logging

    from tqdm import tqdm

    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    names = [name for name in classes() if any(fnmatch.fnmatchcase(name, pattern) for pattern in given.names)]
    rows = []
    for name in tqdm(names, disable=None):
        signal.signal(signal.SIGALRM, _too_long)
        signal.alarm(60)
        try:
            row = check(name)
        except Exception as error:  # a class that breaks is a line in the table
            row = {"name": name, "error": f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"}
            if given.show:
                row["trace"] = "".join(traceback.format_exception(error)[-4:])
        signal.alarm(0)
        rows.append(row)
        if given.show:
            trace = row.pop("trace", "")
            print({k: v for k, v in row.items() if k not in ("twin",)}, flush=True)
            print(trace[-1500:], end="", flush=True)
    good = [row for row in rows if row.get("replay") == 0.0]
    print(f"{len(rows)} classes, {len(good)} replayed with difference 0.0")


if __name__ == "__main__":
    main()
