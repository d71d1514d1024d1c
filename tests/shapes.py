"""Which functions have their shapes checked in tests: those with an annotation of jaxtyping's.

The import hook that pytest is given decorates every function of the package, nested ones at each
call of their parents. For most there is no shape to check, and types are pyright's. Without them
the tests start and run about three times as fast.
"""

from types import FunctionType

import jaxtyping

_every = jaxtyping.jaxtyped


def _with_shapes(*, typechecker):
    decorate = _every(typechecker=typechecker)

    def checked(definition):
        nested = isinstance(definition, FunctionType) and "<locals>" in definition.__qualname__
        shapes = "jaxtyping." in str(getattr(definition, "__annotations__", ""))
        return decorate(definition) if shapes and not nested else definition

    return checked


jaxtyping.jaxtyped = _with_shapes
