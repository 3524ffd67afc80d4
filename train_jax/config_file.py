"""Loading of config files, machine presets, and command-line overrides.

    load("configs/clip/shapes.py"), load("clip/shapes")     the result of the file's `get_config()`
    on_machine(config, "8xh100")                            the config with the options of a machine preset
    override(config, ["--config.optim.lr=3e-4"])            the config with these options changed

Config files may import files of the same folder: `from . import shapes` imports `shapes.py`.
"""

import argparse
import ast
import difflib
import logging
import sys
import traceback
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from train_jax import config as config_lib
from train_jax.arguments import expand_home
from train_jax.errors import ConfigError

log = logging.getLogger(__name__)

OPTION = "--config."  # prefix of overrides
_HERE = Path(__file__).resolve().parent
# An installation has the configs inside this package, a clone beside it.
FOLDER = next(folder for folder in (_HERE / "configs", _HERE.parent / "configs") if folder.is_dir())
_MACHINES = "machines"
_PACKAGE = "_folder_of_a_config"  # package name of a config file's folder while the file runs
_LITERALS = {"true": "True", "false": "False", "none": "None"}


def parse_arguments(parser: argparse.ArgumentParser, argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Parses a command line whose other arguments are overrides, `--config.NAME=VALUE`. Returns `(arguments, overrides)`.

    Exits with the parser's error for an argument that is neither.
    """
    arguments, overrides = parser.parse_known_args(expand_home(argv))
    for word in overrides:
        if not word.startswith(OPTION):
            parser.error(f"unexpected argument {word!r}: options are written {OPTION}NAME=VALUE")
    return arguments, overrides


def load(name: str | Path) -> ConfigDict:
    """Loads a config from a Python file, or a shipped config by name, such as "clip/shapes".

    Raises ConfigError if there is no such file, or if the file does not define a valid `get_config()`.
    """
    config = _call(name, "get_config")
    if not isinstance(config, Mapping | ConfigDict):
        raise ConfigError(f"--config={name}: get_config() returns a {type(config).__name__}; it must be a ConfigDict")
    return ConfigDict(config)


def load_sweep(name: str | Path) -> list[dict[str, Any]]:
    """Loads the points of a config file's `sweep()`: dicts of options by dotted name. Without it there is one, `{}`.

    Raises ConfigError for points of another form.
    """
    points = _call(name, "sweep", lambda: [{}])
    try:
        points = [dict(point) for point in points]
    except (TypeError, ValueError) as error:
        raise ConfigError(f"--config={name}: sweep() must yield dicts of options, such as {{'optim.lr': 1e-3}}") from error
    if not all(isinstance(option, str) for point in points for option in point):
        raise ConfigError(f"--config={name}: sweep() must yield dicts by dotted name, such as {{'optim.lr': 1e-3}}")
    if not points:
        raise ConfigError(f"--config={name}: sweep() yields no point")
    return points


def _call(name: str | Path, function: str, default: Callable | None = None) -> Any:
    """Calls a function of a config file, or `default` if the file does not define it."""
    file = _find_file(str(name))
    package = types.ModuleType(_PACKAGE)
    package.__path__ = [str(file.parent)]
    namespace = {"__name__": "config", "__package__": _PACKAGE, "__file__": str(file)}
    sys.modules[_PACKAGE] = package
    # Bytecode is recognised by a time in seconds: a neighbour that is edited twice in a second would be the older one.
    keeps_bytecode, sys.dont_write_bytecode = not sys.dont_write_bytecode, True
    try:
        exec(compile(file.read_bytes(), str(file), "exec"), namespace)
        if function not in namespace and default is None:
            raise ConfigError(f"--config={name}: the file defines no {function}()")
        result = namespace.get(function, default)()
        # A generator runs here, where the file's own modules can be imported.
        return list(result) if isinstance(result, Iterator) else result
    except ConfigError:
        raise
    except Exception as error:
        hint = "; the folder of a module of your own must be on PYTHONPATH" if isinstance(error, ImportError) else ""
        raise ConfigError(f"--config={name}: {type(error).__name__}: {error}{_format_line(error, file)}{hint}") from error
    finally:
        sys.dont_write_bytecode = not keeps_bytecode
        for module in [module for module in sys.modules if module.partition(".")[0] == _PACKAGE]:
            del sys.modules[module]


def names() -> list[str]:
    """Lists the names of the shipped configs, without machine presets."""
    files = (file.relative_to(FOLDER).with_suffix("").as_posix() for file in FOLDER.glob("*/[!_]*.py"))
    return sorted(name for name in files if not name.startswith(_MACHINES))


def find_placeholder(path: str, task: str, option: str) -> ConfigDict | None:
    """Returns the shipped config that `path` names in place of a model; None if there is a model at the path.

    Args:
      task: task of the config, such as "clip_jax.task".
      option: option with the path, for messages.

    Raises ConfigError, which lists the shipped configs of the task, for any other path.
    """
    shipped = {name: config for name in names() if (config := load(name)).task == task}
    if path not in shipped and not (path and Path(path).exists()):
        raise ConfigError(
            f"{option} = {path!r} is no model. Name one, or a shipped config for a placeholder: {', '.join(shipped)}"
        )
    return shipped.get(path)


def machines() -> list[str]:
    """Lists the names of the shipped machine presets."""
    return sorted(file.stem for file in (FOLDER / _MACHINES).glob("[!_]*.py"))


def on_machine(config: ConfigDict, name: str) -> ConfigDict:
    """Overlays `config` with a machine preset: mesh, precision, rematerialisation, workers, threads.

    Args:
      name: name of a shipped preset, or a preset file.

    Options of `compute` that the task does not have are ignored. Raises ConfigError if there is no such
    preset, and for other options that do not exist.
    """
    if not Path(name).is_file() and name not in machines():
        raise ConfigError(f"--machine={name}: there is no such file or machine. Machines by name: {', '.join(machines())}")
    preset = load(name if Path(name).is_file() else f"{_MACHINES}/{name}")
    full, options = config_lib.fill(config), config.to_dict()
    for group, values in preset.items():
        if not isinstance(values, ConfigDict):
            raise ConfigError(f"--machine={name}: {group} = {values!r} is no group of options, such as mesh or compute")
        for key, value in values.items():
            if key in full.get(group, {}):
                options.setdefault(group, {})[key] = value
            elif group == "compute":
                log.info("--machine=%s: the task of this config has no option compute.%s", name, key)
            else:
                raise ConfigError(f"--machine={name}: config.{group}.{key} is not an option")
    return ConfigDict(options)


def override(config: ConfigDict, words: Sequence[str]) -> ConfigDict:
    """Overlays `config` with command-line arguments of the form `--config.NAME=VALUE`.

    Values of string options are taken literally; other values are Python literals (`3e-4`, `(3, 4, 6, 3)`, `true`,
    `none`). A single value for a tuple option becomes a tuple of length 1. The default determines the type. Raises
    ConfigError for arguments of another form; `train_jax.config.resolve` checks names and types.
    """
    return ConfigDict(overlay(config.to_dict(), words, OPTION, config_lib.fill(config)))


def overlay(options: dict, words: Sequence[str], prefix: str, defaults: ConfigDict) -> dict:
    """Overlays `options` in place with arguments of the form `{prefix}NAME=VALUE`, as `override`, and returns them."""
    for word in words:
        path, equals, text = word.removeprefix(prefix).partition("=")
        if not equals or not all(path.split(".")):
            raise ConfigError(f"{word}: an option is written {prefix}NAME=VALUE")
        _set_option(options, path, parse_value(text, option(defaults, path)), word, prefix)
    return options


def set_options(config: ConfigDict, values: Mapping[str, Any]) -> ConfigDict:
    """Overlays `config` with options by dotted name. `train_jax.config.resolve` checks names and types."""
    options = config.to_dict()
    for path, value in values.items():
        _set_option(options, path, value, f"{OPTION}{path}", OPTION)
    return ConfigDict(options)


def as_words(options: Mapping[str, Any]) -> list[str]:
    """Writes options by dotted name as command-line arguments, which `override` reads."""
    return [f"{OPTION}{name}={as_plain(value)}" for name, value in options.items()]


def as_plain(value: Any) -> Any:
    """Converts NumPy's numbers and arrays, also inside of dicts, tuples and lists, to Python's, whose texts are literals."""
    if isinstance(value, ConfigDict):
        value = value.to_dict()
    if isinstance(value, Mapping):
        return {key: as_plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(map(as_plain, value))
    return value.tolist() if hasattr(value, "tolist") else value


def _set_option(options: dict, path: str, value: Any, word: str, prefix: str) -> None:
    """Sets an option by dotted name. Raises ConfigError, which names `word`, if a part of the name is no group."""
    *groups, key = path.split(".")
    for depth, group in enumerate(groups, 1):
        if options.get(group) is None:
            options[group] = {}
        options = options[group]
        if not isinstance(options, dict):
            name = prefix + ".".join(groups[:depth])
            raise ConfigError(f"{word}: {name} is one option, not a group of options")
    options[key] = value


def _find_file(name: str) -> Path:
    """Returns the file of a config by path or name. Raises ConfigError if there is none."""
    shipped = FOLDER / f"{name}.py"
    for file in (Path(name), shipped):
        if file.is_file():
            return file.resolve()
    close = difflib.get_close_matches(name.removeprefix("configs/").removesuffix(".py"), names(), n=1)
    hint = f"; did you mean --config={close[0]}?" if close else "."
    raise ConfigError(f"--config={name}: there is no such file or config{hint} Configs by name: {', '.join(names())}")


def _format_line(error: Exception, file: Path) -> str:
    """Formats the line number of the config file in which an error occurred."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
    return f" (line {lines[-1]})" if lines else ""


def option(options: ConfigDict, path: str):
    """Returns the value of an option by dotted name; None if there is no such option."""
    for key in path.split("."):
        options = options.get(key) if isinstance(options, ConfigDict) else None
    return options


def parse_value(text: str, default: Any) -> Any:
    """Parses the text of a value for an option with this default, as `override` does."""
    if isinstance(default, str):
        return text
    try:
        value = ast.literal_eval(_LITERALS.get(text.lower(), text))
    except (ValueError, SyntaxError):
        value = text
    return (value,) if isinstance(default, tuple) and not isinstance(value, tuple | list) else value
