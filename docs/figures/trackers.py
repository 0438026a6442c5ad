"""Draws docs/figures/trackers-*.png: what arrives in trackers when a short run logs to them.

``hatch run trackers:python docs/figures/trackers.py`` runs examples/quickstart.yaml with fewer steps, reads MLflow's
file back by MLflow's client, and decodes what an OpenTelemetry collector was sent.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from mlflow import MlflowClient

ROOT = Path(__file__).resolve().parents[2]
METRICS = (
    *("train/loss", "rollout/reward_mean", "eval/accuracy"),
    *("cpu_percent", "memory_percent", "network_sent_bytes_per_s"),
)


def collector():
    """The one of the tests."""
    path = ROOT / "packages" / "logger-otel" / "tests" / "collector.py"
    spec = importlib.util.spec_from_file_location("collector", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def train(folder: Path, endpoint: str) -> None:
    config = yaml.safe_load((ROOT / "examples" / "quickstart.yaml").read_text())
    config["run"] |= {"name": "quickstart", "directory": str(folder / "run"), "measure_machines_every": 1}
    config["loggers"] = [{"name": "mlflow"}, {"name": "otel", "endpoint": endpoint, "every": 1}]
    for stage, steps in zip(config["stages"], (300, 20), strict=True):
        stage["run"]["steps"] = steps
        stage["evaluators"][0]["every"] = steps // 5
        stage["data"]["function"] = str(ROOT / "examples" / stage["data"]["function"])
    config["eval_data"]["function"] = str(ROOT / "examples" / config["eval_data"]["function"])
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    rl = "import sys; from rl_core.cli.main import main; sys.exit(main())"
    subprocess.run([sys.executable, "-c", rl, "run", str(folder / "config.yaml")], check=True)


def draw_mlflow(folder: Path) -> None:
    client = MlflowClient(f"sqlite:///{folder}/run/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("rl").experiment_id])
    figure = Figure(figsize=(9, 5), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, name in zip(figure.subplots(2, 3).flat, METRICS, strict=True):
        axes.set_title(name if "/" in name else f"system/HOST/{name}", fontsize=9)
        axes.set_xlabel("step", fontsize=8)
        for run in sorted(runs, key=lambda run: run.info.start_time):
            for full in run.data.metrics:
                if full == name or (full.startswith("system/") and full.endswith("/" + name)):
                    points = sorted((m.step, m.value) for m in client.get_metric_history(run.info.run_id, full))
                    axes.plot(
                        *zip(*points, strict=True), label=run.info.run_name, marker="." if len(points) < 40 else ""
                    )
        axes.legend(fontsize=8)
    figure.savefig(Path(__file__).with_name("trackers-mlflow.png"))


def draw_otel(received, attributes) -> None:
    steps = [s for s in received.spans if s.name == "step" and attributes(s)["rl.stage"] == "grpo"]
    step = next(s for s in steps if attributes(s)["rl.step"] == 8)
    spans = sorted((s for s in received.spans if s.trace_id == step.trace_id), key=lambda s: s.start_time_unix_nano)
    figure = Figure(figsize=(9, 0.6 + 0.35 * len(spans)), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for row, span in enumerate(spans):
        begin = (span.start_time_unix_nano - step.start_time_unix_nano) / 1e6
        length = (span.end_time_unix_nano - span.start_time_unix_nano) / 1e6
        axes.barh(row, length, left=begin, color="tab:blue" if span is step else "tab:orange")
        events = f", {len(span.events)} samples as events" if span.events else ""
        axes.text(begin, row, f" {span.name} {length:.1f} ms{events}", va="center", fontsize=8)
    axes.set_yticks([])
    axes.invert_yaxis()
    axes.set_xlabel("milliseconds since the step began (stage grpo, step 8)")
    figure.savefig(Path(__file__).with_name("trackers-otel.png"))


def main() -> None:
    module = collector()
    received = module.Collector()
    with tempfile.TemporaryDirectory() as folder:
        train(Path(folder), received.address)
        draw_mlflow(Path(folder))
    draw_otel(received, module.attributes)
    received.close()


if __name__ == "__main__":
    main()
