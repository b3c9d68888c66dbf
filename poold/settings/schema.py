"""From tables as TOML has them to a `Config`, by pydantic models that the declarations give.

A model has a field for each declaration in `poold.settings.config`. A field has the file's key, the
default, and a validator that calls the setting's reader (`poold.settings.fields`). pydantic
collects the faults of all keys with their places and finds the keys that no table has. Its own
messages reach no operator.

Only a judging process imports this module. No function here opens a file or asks the network or the
account database: `poold.settings.preflight` does that.
"""

from collections.abc import Callable
from types import GenericAlias
from typing import Annotated, Any, ClassVar, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, ValidationError, create_model, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from poold.settings import rules
from poold.settings.annotations import Range, Setting, settings_of
from poold.settings.config import Config
from poold.settings.fields import Fault, FaultsError, Reader, reader_of, wrong


class _Table(BaseModel):
    """A table that is being judged; `declaration` is its dataclass."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)
    declaration: ClassVar[type]

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, tree: object) -> object:
        return rules.completed(cls.declaration, tree)

    @model_validator(mode="after")
    def _obey(self) -> Self:
        faults = list(rules.broken(_settled(self), _written(self)))
        if faults:
            raise _validation_error(faults)
        return self


def judged(tree: dict[str, Any]) -> Config:
    """Return the settings of a TOML tree. Raises pydantic.ValidationError with every fault.

    Each fault is one of `fault`, with `text` and `siblings` of a `poold.settings.fields.Fault`,
    `value_error`, `extra_forbidden`, or an error of a table that is none.
    """
    config: Config = _settled(_MODEL.model_validate(tree))
    return config


def _model(table: type, name: str = "") -> type[_Table]:
    """Return the model of a dataclass whose table has this name in the file."""
    definitions: dict[str, Any] = {setting.name: _field(setting, name) for setting in settings_of(table)}
    model = create_model(table.__name__, __base__=_Table, **definitions)
    model.declaration = table
    return model


def _field(setting: Setting, table: str) -> tuple[Any, Any]:
    """Return the annotation and the default of a setting in the table of this name."""
    alias = setting.key if setting.key != setting.name else None
    if setting.table is None:
        return Annotated[Any, PlainValidator(_validator(reader_of(setting, table)))], Field(default=setting.default, alias=alias)
    model = _model(setting.table, setting.key)
    if not setting.is_array:
        return model, Field(default_factory=model, alias=alias)
    tables: Any = Annotated[GenericAlias(tuple, (model, ...)), BeforeValidator(_array(setting, model))]
    return tables, Field(default_factory=lambda: (model(),), alias=alias)


def _array(setting: Setting, model: type[_Table]) -> Callable[[object], tuple[object, ...]]:
    """Return what reads an array of tables; an empty array holds one table of defaults."""
    most = (setting.annotation(Range) or Range()).high

    def read(value: object) -> tuple[object, ...]:
        if not isinstance(value, list | tuple):
            raise wrong(f"written [[{setting.key}]], with two brackets, once for each", value)
        if len(value) > most:
            raise ValueError(f"is written {len(value)} times; at most {most} are possible")
        return tuple(value) or (model(),)

    return read


def _validator(reader: Reader) -> Callable[[object], Any]:
    def read(value: object) -> Any:
        try:
            return reader.read(value)
        except FaultsError as error:
            raise _validation_error(error.faults) from None

    return read


def _validation_error(faults: list[Fault]) -> ValidationError:
    """Return the error by which pydantic puts each fault at its own place."""
    details = [
        InitErrorDetails(
            type=PydanticCustomError("fault", "{text}", {"text": fault.message, "siblings": fault.siblings}), loc=fault.path, input=None
        )
        for fault in faults
    ]
    return ValidationError.from_exception_data("settings", details)


def _settled(model: _Table) -> Any:
    """Return a judged table as its dataclass."""
    return model.declaration(**{name: _plain(getattr(model, name)) for name in type(model).model_fields})


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(_plain(each) for each in value)
    return _settled(value) if isinstance(value, _Table) else value


def _written(model: _Table) -> set[tuple[str, ...]]:
    """Return the paths of the fields that the file holds, with those of inner tables."""
    tables = {name: getattr(model, name) for name in model.model_fields_set}
    inner = {(name, *path) for name, table in tables.items() if isinstance(table, _Table) for path in _written(table)}
    return {(name,) for name in tables} | inner


_MODEL = _model(Config)
