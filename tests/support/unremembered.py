"""Make packages look up their public names at each use.

A test may then replace a name where it is defined. This module must be imported before any package
of the project, because lazy_loader would otherwise keep every name that it has once found.
"""

import sys

import lazy_loader

attach_stub = lazy_loader.attach_stub


def attach(package_name: str, filename: str):
    find, names, public = attach_stub(package_name, filename)

    def find_anew(name: str):
        found = find(name)
        if name in public:
            sys.modules[package_name].__dict__.pop(name, None)
        return found

    return find_anew, names, public


lazy_loader.attach_stub = attach
