from rl_core.training.logger_group import LoggerGroup


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
