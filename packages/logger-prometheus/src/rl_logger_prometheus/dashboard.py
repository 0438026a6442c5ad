"""``python -m rl_logger_prometheus.dashboard > rl.json``: a dashboard to import in Grafana."""

from __future__ import annotations

import json
import sys
from typing import Any

_PANELS = (
    ("Progress", [("rl_step", "{{run}} {{stage}}")], "none"),
    ("Loss", [("rl_train_loss", "{{run}} {{stage}}"), ("rl_eval_loss", "{{run}} {{stage}} held out")], "none"),
    ("Reward", [("rl_rollout_reward_mean", "{{run}} {{stage}}")], "none"),
    ("Accuracy", [("rl_eval_accuracy", "{{run}} {{stage}}")], "percentunit"),
    ("KL and entropy", [("rl_policy_kl_reference", "{{run}} KL"), ("rl_policy_entropy", "{{run}} entropy")], "none"),
    ("Sampler against trainer", [("rl_mismatch_kl_k3", "{{run}} {{stage}}")], "none"),
    ("Time of a step", [("rl_time_step_s", "{{run}} step"), ("rl_time_rollout_s", "{{run}} rollouts")], "s"),
    ("Processors", [("rl_machine_cpu_percent", "{{machine}}")], "percent"),
    ("Memory", [("rl_machine_memory_percent", "{{machine}}")], "percent"),
    ("GPUs", [("rl_machine_gpu_utilization_percent", "{{machine}} {{gpu}}")], "percent"),
    ("GPU memory", [("rl_machine_gpu_memory_percent", "{{machine}} {{gpu}}")], "percent"),
    (
        "Network",
        [
            ("rl_machine_network_received_bytes_per_s", "{{machine}} received"),
            ("rl_machine_network_sent_bytes_per_s", "{{machine}} sent"),
        ],
        "Bps",
    ),
    (
        "Disk",
        [
            ("rl_machine_disk_read_bytes_per_s", "{{machine}} read"),
            ("rl_machine_disk_written_bytes_per_s", "{{machine}} written"),
        ],
        "Bps",
    ),
)
"""Title, (metric, legend) of each line, unit."""

_SOURCE = {"type": "prometheus", "uid": "${datasource}"}


def dashboard() -> dict[str, Any]:
    """The dashboard as Grafana's JSON model, with a choice of data source and of runs."""
    return {
        "title": "rl",
        "uid": "rl-training",
        "schemaVersion": 39,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {
            "list": [
                {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"},
                {
                    "name": "run",
                    "label": "Run",
                    "type": "query",
                    "datasource": _SOURCE,
                    "query": {"query": "label_values(rl_step, run)", "refId": "runs"},
                    "refresh": 2,
                    "multi": True,
                    "includeAll": True,
                    "current": {"text": "All", "value": "$__all"},
                },
            ]
        },
        "panels": [_panel(index, *panel) for index, panel in enumerate(_PANELS)],
    }


def _panel(index: int, title: str, lines: list[tuple[str, str]], unit: str) -> dict[str, Any]:
    return {
        "id": index + 1,
        "title": title,
        "type": "timeseries",
        "datasource": _SOURCE,
        "gridPos": {"h": 8, "w": 12, "x": 12 * (index % 2), "y": 8 * (index // 2)},
        "fieldConfig": {"defaults": {"unit": unit}, "overrides": []},
        "targets": [
            {
                "refId": chr(ord("A") + at),
                "datasource": _SOURCE,
                "expr": f'{name}{{run=~"$run"}}',
                "legendFormat": legend,
            }
            for at, (name, legend) in enumerate(lines)
        ],
    }


def main() -> None:
    """Print it."""
    sys.stdout.write(json.dumps(dashboard(), indent=2) + "\n")


if __name__ == "__main__":
    main()
