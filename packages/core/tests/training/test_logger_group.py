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


def test_without_the_console_a_run_keeps_its_metrics_and_says_what_to_install(site, config_of, base, caplog):
    loggers = build_loggers(config_of(base), load_registry())
    assert [name for name, _ in loggers._loggers] == ["jsonl"]
    assert caplog.messages == ["no progress is shown here (pip install rl-logger-console); it is in metrics.jsonl"]


def test_with_it_every_run_has_both(config_of, base, monkeypatch):
    monkeypatch.setenv("RL_PLUGINS", "rl-logger-console")
    loggers = build_loggers(config_of(base), load_registry())
    assert [name for name, _ in loggers._loggers] == ["console", "jsonl"]
