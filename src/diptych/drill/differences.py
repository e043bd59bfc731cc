"""Compare the ends of two runs."""

from __future__ import annotations

from diptych.checkpoint_folder import CheckpointError, checkpoints, read_manifest, verify
from diptych.run_dir import RunDir, read_metrics
from diptych.terminal import counted


def differences(whole: RunDir, disturbed: RunDir) -> list[str]:
    """What differs between the last checkpoints of two runs, and which of their files are damaged."""
    last = [checkpoints(run.checkpoints)[:1] for run in (whole, disturbed)]
    if not all(last):
        return ["one of the runs has no checkpoint"]
    files, lines = [], []
    for [checkpoint] in last:
        listed = {}
        try:
            listed = read_manifest(checkpoint)
            verify(checkpoint)
        except CheckpointError as error:
            lines.append(str(error))
        files.append({name: each["sha256"] for name, each in listed.items() if name.endswith(".safetensors")})
    lines += [f"{name}: differs" for name in files[0] if files[0][name] != files[1].get(name)]
    losses = [
        {line["samples_seen"]: line["loss"] for line in read_metrics(run.metrics) if "loss" in line}
        for run in (whole, disturbed)
    ]
    wrong = [samples for samples, loss in losses[0].items() if losses[1].get(samples) != loss]
    if wrong:
        lines.append(f"the loss after {counted(wrong[0], 'sample')} is the first that differs, of {len(wrong)}")
    return lines
