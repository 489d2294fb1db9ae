"""The errors of tts_agent.

* TTSError
  + ConfigError (ValueError)          an option, a strategy name, a budget field or a model folder is wrong
    - BudgetError                     a budget is not positive, or too small for the prompt and one decision
      * BudgetRefusal                 in middleware: a budget has no room for a model call of an agent
    - ModelError                      a model folder is missing, broken, or of a kind the engine cannot serve exactly
    - PromptError                     a prompt does not fit the model's context
  + IllegalStep (ValueError)          in pocket.countdown: a step breaks the rules of the puzzle
  + LogError (ValueError)             a trace or a checkpoint is of another version, or is not one of ours
  + SearchError (RuntimeError)        the search cannot go on: the engine and the log contradict each other
  + EngineUnavailable (ConnectionError)  no engine answers any more; retries inside the engine are used up

The second base class decides what LangGraph's default retry policy does: it never retries `ValueError` and
`RuntimeError` (they would fail again) and does retry `ConnectionError`.
Running out of budget is not an error; it is a `StopReason` of the `Outcome`.
"""


class TTSError(Exception):
    """Base class of every error raised on purpose by this package."""


class ConfigError(TTSError, ValueError):
    """An argument, option or name is wrong; the message names the value and the remedy."""


class BudgetError(ConfigError):
    """A budget is not positive, or cannot pay for the prompt and one decision."""


class ModelError(ConfigError):
    """A model folder is missing, broken, or of a kind that the engine cannot serve exactly."""


class PromptError(ConfigError):
    """A prompt and its completion do not fit the model's context."""


class LogError(TTSError, ValueError):
    """A trace or a checkpoint is of another version, cut in the middle, or not one of ours."""


class SearchError(TTSError, RuntimeError):
    """The search cannot continue: the log and what the engine or strategy did contradict each other."""


class EngineUnavailable(TTSError, ConnectionError):
    """The engine does not answer and its own bounded retries are used up."""
