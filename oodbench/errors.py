"""The errors that a user is meant to read."""

__all__ = ["ModelError", "OodbenchError", "PluginError", "StatisticError"]


class OodbenchError(Exception):
    """Says in one sentence what is wrong and what to do; the command line prints it and exits with code 2."""


class PluginError(OodbenchError):
    """What a plugin brought failed: only what needs it cannot go on."""


class ModelError(PluginError):
    """A plugin's model failed: nothing more can be measured with it."""


class StatisticError(PluginError):
    """A plugin's statistic failed: only the detectors that read it cannot go on."""

    def __init__(self, statistic: str, sentence: str) -> None:
        super().__init__(sentence)
        self.statistic = statistic
