"""Packages that an install without a GPU leaves out: they can be imported, and refuse to do anything.

Every refusal is an exception and a line in the file that `IDLE_LOG` names, so that a test can count them.
"""

import importlib.abc
import importlib.machinery
import os
import sys
import types


def refuse(name):
    """Note that `name` was used, and raise."""
    if log := os.environ.get("IDLE_LOG"):
        with open(log, "a", encoding="utf-8") as file:
            file.write(f"{name}\n")
    raise NotImplementedError(f"{name}: the package is not installed here, only a stand-in for its imports")


class Idle:
    """A name of such a package. It may be mentioned in definitions and annotations; using it refuses."""

    def __init__(self, name):
        self.__dict__["_name"] = name

    def __getattr__(self, key):
        if key.startswith("__"):
            raise AttributeError(key)
        return Idle(f"{self._name}.{key}")

    def _refuse(self, *_, **__):
        refuse(self._name)

    __call__ = __getitem__ = __iter__ = __len__ = __bool__ = __enter__ = _refuse

    def __or__(self, other):
        return self

    __ror__ = __or__


class IdlePackage(types.ModuleType):
    """A module of which every name that was not given is idle. Names of classes are classes, to be derived from."""

    absent = frozenset()

    def __getattr__(self, key):
        if key.startswith("__") or f"{self.__name__}.{key}" in self.absent:
            raise AttributeError(key)
        name = f"{self.__name__}.{key}"
        if not key[0].isupper():
            return Idle(name)
        made = type(key, (), {"__init__": lambda self, *_, **__: refuse(name)})
        setattr(self, key, made)
        return made


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the submodules of `package`, all idle."""

    def __init__(self, package, absent, given):
        self.package, self.absent, self.given = package, absent, given

    def find_spec(self, name, path=None, target=None):
        if name.startswith(f"{self.package}.") and name not in self.absent:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        module = IdlePackage(spec.name)
        module.absent = self.absent
        vars(module).update(self.given.get(spec.name, {}))
        return module

    def exec_module(self, module):
        pass


def stand_in(package, *, absent=(), given=None):
    """Make `package`, which is being imported, and all its submodules idle, but for what is `given` by module name.

    What is `absent` does not exist, as in some versions of the real package.
    """
    absent, given = frozenset(absent), given or {}
    sys.meta_path.append(_Finder(package, absent, given))
    module = sys.modules[package]
    module.__class__ = IdlePackage
    module.absent = absent
    vars(module).update(given.get(package, {}))
