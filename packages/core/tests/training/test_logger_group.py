from rl_core.contracts.logger import RunInfo
from rl_core.discovery.registry import load_registry
from rl_core.training.logger_group import LoggerGroup, build_loggers


class Keeps:
    def __init__(self):
        self.rows = []

    def log(self, step, metrics):
        self.rows.append((step, dict(metrics)))


class Fails(Keeps):
    def log(self, step, metrics):
        raise ConnectionError("no route to host")


def test_a_failing_logger_is_dropped_with_one_warning_and_the_others_go_on(caplog):
    kept = Keeps()
    loggers = LoggerGroup([("remote", Fails()), ("file", kept)])
    for step in (1, 2, 3):
        loggers.log(step, {"train/loss": 0.5})
    assert kept.rows == [(step, {"train/loss": 0.5}) for step in (1, 2, 3)]
    assert caplog.messages == ["logger 'remote' failed and is dropped: ConnectionError: no route to host"]


def logged(config, folder) -> None:
    loggers = build_loggers(config, load_registry())
    loggers.start(RunInfo("demo", str(folder), "train", ("train",), total_steps=1, first_step=1, config={}))
    loggers.log(1, {"train/loss": 0.5})
    loggers.close()
    assert (folder / "metrics.jsonl").read_text() == '{"step": 1, "stage": "train", "train/loss": 0.5}\n'


def test_without_the_console_a_run_keeps_its_metrics_and_says_what_to_install(site, config_of, base, folder, caplog):
    logged(config_of(base), folder)
    assert caplog.messages == ["no progress is shown here (pip install rl-logger-console); it is in metrics.jsonl"]


def test_with_it_every_run_shows_its_progress_too(config_of, base, folder, monkeypatch, capsys):
    monkeypatch.setenv("RL_PLUGINS", "rl-logger-console")
    logged(config_of(base), folder)
    assert "step 1/1" in capsys.readouterr().out
