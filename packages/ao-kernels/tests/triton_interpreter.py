"""Makes Triton's interpreter look through triton.language once a launch, for the child of
conftest.py.

It does so at each call of a jitted function by another, to put its own functions in place of those
of the compiler, where they stand since the launch or an earlier call: a third of the time of the
interpreted tests (triton 3.9).
"""

from collections.abc import Callable
from typing import Any


def replace_language_once() -> None:
    from triton.runtime import interpreter

    replace: Callable[[Any], Any] = interpreter._patch_lang
    launch = interpreter.GridExecutor.__call__
    languages = (interpreter.tl, interpreter.tl.core)
    replaced: set[tuple[bool, ...]] = set()

    def replace_once(function: Any) -> Any:
        known = [id(value) for value in function.__globals__.values()]
        seen = tuple(id(language) in known for language in languages)
        if seen in replaced:
            return None
        replaced.add(seen)
        return replace(function)

    def launch_anew(self: Any, *args: Any, **kwargs: Any) -> Any:
        replaced.clear()  # what it replaces, it puts back at its end
        return launch(self, *args, **kwargs)

    interpreter._patch_lang = replace_once
    interpreter.GridExecutor.__call__ = launch_anew
