"""SGLang in this process, where it is not installed; tests/sglang has those where it is."""

import pytest

from tts_agent.engines import load_engine
from tts_agent.engines.sglang_local import SGLangLocalEngine
from tts_agent.errors import ConfigError, ModelError
from tts_agent.pocket import model_folder


def test_what_is_missing_is_named() -> None:
    with pytest.raises(ModelError, match=r"pip install 'tts-agent\[sglang-local\]'"):
        SGLangLocalEngine(model_folder())
    with pytest.raises(ModelError, match="sglang"):
        load_engine("sglang-local://somewhere", settings={"mem_fraction_static": 0.8})


def test_unknown_options_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"unknown options \['timeout'\]"):
        load_engine("sglang-local://somewhere", timeout=3)
