"""Lets orquesta 1.2.0, the newest on PyPI, run on Python 3.11 with networkx 2.8: import before orquesta.

StackStorm 3.9 carries orquesta 1.6. What that means for a workflow is in engine.py.
"""
import collections
import collections.abc
import functools
import re

import networkx

for _name in ("MutableSequence", "MutableMapping", "Mapping", "Sequence", "Iterable", "Callable",
              "MutableSet", "Set", "Hashable"):
    setattr(collections, _name, getattr(collections.abc, _name))  # moved in Python 3.10

_inline_flag = re.compile(r"\(\?([aiLmsux]+)\)")


def _hoist(pattern):
    """Inline flags inside a pattern are an error since Python 3.11: move them to its start."""
    if isinstance(pattern, str):
        flags = "".join(_inline_flag.findall(pattern))
        if flags:
            return "(?%s)%s" % ("".join(sorted(set(flags))), _inline_flag.sub("", pattern))
    return pattern


for _name in ("compile", "match", "search", "findall", "sub", "split", "fullmatch"):
    _function = getattr(re, _name)
    setattr(re, _name, functools.wraps(_function)(
        lambda pattern, *args, _f=_function, **kwargs: _f(_hoist(pattern), *args, **kwargs)))


class _Degrees(dict):
    def __call__(self, node=None):
        return self if node is None else self[node]


_in_degree = networkx.MultiDiGraph.in_degree
networkx.MultiDiGraph.node = property(lambda graph: graph.nodes)  # renamed in networkx 2.4
networkx.MultiDiGraph.in_degree = property(lambda graph: _Degrees(dict(_in_degree.__get__(graph)())))
