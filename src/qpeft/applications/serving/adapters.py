"""One base model in memory and several adapters on it by name, each a model of its own whose weight matrices are the base's."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qpeft.errors import ModelError, RunError
from qpeft.evaluation.generate import Generated, encode_messages, generate
from qpeft.training.data.examples import Message
from qpeft.training.loop.loaded_run import copy_sharing_weights
from qpeft.training.loop.run_dir import ADAPTER, finished_config
from qpeft.training.model import loading

BASE = "base"


@dataclass(frozen=True)
class Served:
    """A model that answers, and the system message of its recipe (None: none)."""

    model: Any
    system: str | None


class Adapters:
    """The adapters in memory. Loading and unloading are safe while others answer; answers are made one at a time.

    Runs that are loaded later must lie under `root` and have the same base model as the first.
    """

    def __init__(self, run: Path, *, name: str | None = None, root: Path | None = None) -> None:
        config = finished_config(run)
        self.section = config.model
        self.root = (root or run.resolve().parent).resolve()
        self.tokenizer = loading.load_tokenizer(config.model)
        base = loading.load_model(config.model).eval()
        self._served = {BASE: Served(base, None)}
        self._changing, self._answering = threading.Lock(), threading.Lock()
        self.load(name or run.resolve().name, run, inside=False)

    def names(self) -> list[str]:
        """What can be asked: the base model and every adapter."""
        return list(self._served)

    def get(self, name: str) -> Served:
        """Raises ModelError for an unknown name."""
        try:
            return self._served[name]
        except KeyError as error:
            raise ModelError("no such model is loaded", value=name, bound=", ".join(self._served)) from error

    def load(self, name: str, run: Path, *, inside: bool = True) -> None:
        """Put a finished run's adapter on the base model.

        Args:
            name: name under which it is served.
            run: folder of the run. A relative path is below `root`, or below the working folder if `inside` is False.
            inside: require that the folder is under `root`.

        Raises:
            ModelError: the name is taken or empty, or the run's base model is another.
            RunError: the folder is no finished run, or not under `root`.
            AdapterError: the adapter's file is damaged or another's.
        """
        from qpeft.adapters.peft.load import load_saved

        place = (self.root / run).resolve() if inside else run.resolve()
        if inside and not place.is_relative_to(self.root):
            raise RunError("the run is outside the folder that adapters are loaded from", value=str(run), bound=str(self.root))
        config = finished_config(place)
        if config.model != self.section:
            raise ModelError(
                "the adapter was trained on another base model",
                value=config.model.model_name_or_path,
                bound=f"{self.section.model_name_or_path}, same dtype and revision",
            )
        with self._changing:
            if not name or name in self._served:
                raise ModelError("the name is empty or taken", value=name, hint="another name, or unload it first")
            model = load_saved(copy_sharing_weights(self._served[BASE].model), place / ADAPTER)
            self._served = {**self._served, name: Served(model, config.data.system)}

    def unload(self, name: str) -> None:
        """Forget an adapter; an answer under way is finished. Raises ModelError for an unknown name and for the base model."""
        with self._changing:
            self.get(name)
            if name == BASE:
                raise ModelError("the base model stays", value=name)
            self._served = {other: served for other, served in self._served.items() if other != name}

    def prompt(self, served: Served, messages: Sequence[Message]) -> list[int]:
        """Token ids of the conversation as training wrote it, up to where the answer begins.

        Args:
            served: the adapter, whose system message comes first unless the conversation has one.
            messages: the turns so far, at least one.
        """
        if served.system and messages[0].role != "system":
            messages = [Message("system", served.system), *messages]
        return encode_messages(messages, self.tokenizer)

    def answer(
        self,
        served: Served,
        ids: Sequence[int],
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
        streamer: Any = None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> Generated:
        """Continue a prompt. Answers are made one at a time.

        Args:
            served: the adapter.
            ids: token ids of the prompt.
            max_new_tokens: the most tokens of the answer.
            temperature: 0 takes the most likely tokens; above 0 they are sampled from torch's global generator.
            top_p: sample from the most likely tokens of this total probability.
            seed: of the global generator; None leaves it as it is.
            streamer: a transformers streamer that gets the tokens.
            stopped: asked before every token; True ends the answer.
        """
        with self._answering:
            (answer,) = generate(
                served.model,
                self.tokenizer,
                [ids],
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                top_p=top_p,
                seed=seed,
                streamer=streamer,
                stopped=stopped,
            )
        return answer
