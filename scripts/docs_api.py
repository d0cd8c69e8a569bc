"""The reference of the API in English and Chinese, made from signatures, docstrings and the tables in docs/zh.

`pages(language)` gives Markdown by path, a page for each family and framework. What an argument means in Chinese is
said once, in docs/zh/inputs.yml (the vocabulary of `longspan.inputs`) and docs/zh/arguments.yml, whatever class and
framework it is of; a class of a model is described by its family and its task, and by a line of its own in
docs/zh/names.yml where it has more to say. `untranslated()` lists what the tables lack.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import logging
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import griffe
import yaml
from griffe import DocstringSection

ROOT = Path(__file__).resolve().parents[1]
STUB = ROOT / "src" / "longspan" / "__init__.pyi"
FRAMEWORKS = {"torch": "PyTorch", "flax": "Flax (JAX)", "keras": "Keras 3"}
FAMILIES = {
    "longformer": "Longformer", "longt5": "LongT5", "bert": "BERT", "diffllama": "DiffLlama", "mega": "MEGA",
    "roberta": "RoBERTa",
}  # fmt: skip
PREFIXES = ("Longformer", "LongT5", "Bert", "DiffLlama", "Mega", "XLMRoberta", "Roberta")
#: pages that are no family's: title in English and Chinese
GENERAL = {
    "tasks": ("Tasks on text and documents", "文本与文档任务"),
    "auto": ("Auto classes", "自动类"),
    "base": ("Base classes, settings, outputs", "基类、配置与输出"),
    "tokenization": ("Tokenizers", "分词器"),
    "generation": ("Text generation", "文本生成"),
    "caches": ("Caches", "缓存"),
}
LABELS = {
    "en": {"defined": "Defined in", "arguments": "Arguments", "name": "Name", "shape": "Shape", "default": "Default",
           "meaning": "Meaning", "returns": "Returns", "field": "Field", "raises": "Errors", "example": "Example",
           "methods": "Methods", "required": "required", "home": "API reference", "or": " or ", "notes": ""},
    "zh": {"defined": "定义于", "arguments": "参数", "name": "名称", "shape": "形状", "default": "默认值",
           "meaning": "含义", "returns": "返回", "field": "字段", "raises": "错误", "example": "示例",
           "methods": "方法", "required": "必填", "home": "API 参考", "or": " 或 ", "notes": "英文说明"},
}  # fmt: skip
_MODEL = re.compile(r"longspan\.models\.(\w+)\.(torch|flax|keras)_(model|backbone)$")


def public_names() -> dict[str, str]:
    """Public name -> module that holds it, in the order of the stub."""
    found = re.findall(r"^from \.([\w.]+) import \(?\s*(\w+) as", STUB.read_text(encoding="utf-8"), flags=re.M)
    return {name: f"longspan.{module}" for module, name in found}


def page_of(module: str) -> str:
    """The page that the names of a module are on."""
    parts = module.split(".")
    if parts[1] == "models":
        framework = parts[3].partition("_")[0]
        return f"{parts[2]}-{framework}" if framework in FRAMEWORKS else parts[2]
    if "cache" in parts[-1]:
        return "caches"
    if parts[1] in ("auto", "tokenization", "generation"):
        return parts[1]
    return "base" if parts[1] in ("nn", "configuration", "model_output", "checkpoints") and (
        parts[-1] != "prepacking") else "tasks"  # fmt: skip


def page_title(page: str, language: str) -> str:
    """The heading of a page."""
    if page in GENERAL:
        return GENERAL[page][language == "zh"]
    family, _, framework = page.partition("-")
    settings = "配置" if language == "zh" else "settings"
    return f"{FAMILIES.get(family, family)} · {FRAMEWORKS.get(framework, settings)}"


def page_names() -> dict[str, list[str]]:
    """Names by page: families first, then what serves all."""
    names = public_names()
    found: dict[str, list[str]] = {}
    for name, module in names.items():
        found.setdefault(page_of(module), []).append(name)
    order = [*(f"{family}{end}" for family in FAMILIES for end in ("", "-torch", "-flax", "-keras")), *GENERAL]
    return {page: found[page] for page in sorted(found, key=order.index)}


@functools.cache
def table(name: str) -> dict[str, Any]:
    """A table of translations, docs/zh/<name>.yml."""
    return yaml.safe_load((ROOT / "docs" / "zh" / f"{name}.yml").read_text(encoding="utf-8")) or {}


def is_model(name: str) -> bool:
    """A class of a model, which is called with data."""
    return _MODEL.match(public_names()[name]) is not None and not name.endswith("PreTrainedModel")


@functools.cache
def get(name: str) -> Any:
    """The public object."""
    return getattr(importlib.import_module("longspan"), name)


def call_of(name: str) -> tuple[str, Any]:
    """Name of the method that users call a model by (`forward`, `call` or `__call__`), and the method."""
    cls = get(name)
    found = _MODEL.match(public_names()[name])
    assert found is not None, f"{name} is no model"
    method = {"torch": "forward", "keras": "call", "flax": "__call__"}[found.group(2)]
    return method, getattr(cls, method)


@functools.cache
def sections(text: str) -> tuple[DocstringSection, ...]:
    """Parts of a docstring."""
    logging.getLogger("griffe").setLevel(logging.ERROR)
    return tuple(griffe.Docstring(inspect.cleandoc(text)).parse("google", warnings=False))


def parts(target: Any, kind: str) -> Iterator[Any]:
    """What the sections of one kind in an object's docstring hold."""
    for section in sections(inspect.getdoc(target) or ""):
        if section.kind.value == kind:
            yield section.value


def described(target: Any) -> dict[str, str]:
    """Arguments and attributes that a docstring describes."""
    found = [item for kind in ("parameters", "attributes") for values in parts(target, kind) for item in values]
    return {item.name: " ".join(item.description.split()) for item in found}


@functools.cache
def common_arguments() -> dict[str, str]:
    """Meaning of arguments that classes share and only one of them describes."""
    found: dict[str, str] = {}
    for name in public_names():
        targets = [get(name)] + ([call_of(name)[1]] if is_model(name) else [])
        for target in targets:
            found = described(target) | found
    return found


def signature(target: Any) -> list[inspect.Parameter]:
    """Parameters without `self`."""
    try:
        found = list(inspect.signature(target).parameters.values())
    except ValueError:
        return []
    return found[1:] if found and found[0].name in ("self", "cls") else found


def signature_text(name: str, parameters: Iterable[inspect.Parameter]) -> str:
    """A call as code, an argument a line if it is long."""
    shown = [re.sub(r"'", '"', str(item.replace(annotation=inspect.Parameter.empty))) for item in parameters]
    shown = [re.sub(r"<(?:class|function) \"?([\w.]+).*>", r"\1", text) for text in shown]
    short = f"{name}({', '.join(shown)})"
    return short if len(short) <= 100 else f"{name}(\n" + "".join(f"    {text},\n" for text in shown) + ")"


def output_of(name: str) -> Any:
    """The class of what a call of a model returns, or None."""
    cls = get(name)
    found = getattr(cls, "output_class", None)
    if dataclasses.is_dataclass(found):
        return found
    text = "\n".join(inspect.getdoc(one) or "" for one in (cls, call_of(name)[1]))
    for named in re.findall(r"`(\w*Output\w*)`", text):
        for module in [cls.__module__, *sorted(sys.modules)]:
            found = getattr(sys.modules[module], named, None) if module.startswith("longspan.") else None
            if dataclasses.is_dataclass(found):
                return found
    return None


class Writer:
    """Writes the reference in one language."""

    def __init__(self, language: str) -> None:
        self.language, self.labels = language, LABELS[language]
        self.is_chinese = language == "zh"

    def page(self, page: str, names: list[str]) -> str:
        """A page of the reference."""
        lines = [f"# {page_title(page, self.language)}", ""]
        lines += [f"- [`{name}`](#{name.lower()})" for name in names] + [""]
        for name in names:
            lines += self.section(name)
        return "\n".join(lines) + "\n"

    def index(self, pages: dict[str, list[str]]) -> str:
        """The page that lists all names."""
        lines = [f"# {self.labels['home']}", ""]
        for page, names in pages.items():
            lines += [f"## [{page_title(page, self.language)}]({page}.md)", ""]
            lines += [f"- [`{name}`]({page}.md#{name.lower()}) — {self.summary(name)}" for name in names] + [""]
        return "\n".join(lines)

    def section(self, name: str) -> list[str]:
        """One name."""
        target = get(name)
        lines = [f"## {name} {{: #{name.lower()} }}", "", *self.text(name), ""]
        lines += ["```python", signature_text(name, signature(target)), "```", ""]
        calls = call_of(name) if is_model(name) else None
        own = described(target) | (described(target.__init__) if inspect.isclass(target) else {})
        lines += self.arguments(name, self.with_all(signature(target), own), own)
        if calls is not None:
            method, function = calls
            lines += [f"### {name}.{method} {{: .api-call }}", "", "```python"]
            lines += [signature_text("model", signature(function)), "```", ""]
            lines += self.arguments(name, signature(function), described(function))
            lines += self.returned(name) + self.errors(function)
        else:
            lines += self.plain_returns(target) + self.errors(target)
        lines += self.examples(target)
        if inspect.isclass(target) and not is_model(name):
            lines += self.methods(name, target)
        file, line = self.place(target)
        return [*lines, f"*{self.labels['defined']} [`{file}`](../../{file}#L{line})*", ""]

    def summary(self, name: str) -> str:
        """The first line about a name."""
        return next(iter(self.text(name)), "")

    def text(self, name: str) -> list[str]:
        """What a name is."""
        if self.is_chinese:
            return [chinese(name)]
        return [line for value in parts(get(name), "text") for line in value.split("\n\n")]

    @staticmethod
    def with_all(parameters: list[inspect.Parameter], own: dict[str, str]) -> list[inspect.Parameter]:
        """Described arguments behind those of the signature: settings that `**kwargs` takes, attributes."""
        known = {item.name for item in parameters} | {str(item) for item in parameters}
        bare = [name.lstrip("*") for name in own if name.lstrip("*") not in known and name not in known]
        extra = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in bare if name.isidentifier()]
        return parameters + extra

    def arguments(self, name: str, parameters: list[inspect.Parameter], own: dict[str, str]) -> list[str]:
        """A table of arguments."""
        rows = []
        for item in parameters:
            stars = "*" * (item.kind is item.VAR_POSITIONAL) + "**" * (item.kind is item.VAR_KEYWORD)
            meaning = self.meaning(name, item.name, own.get(stars + item.name) or own.get(item.name))
            default = "" if stars else self.labels["required"] if item.default is item.empty else f"`{item.default!r}`"
            default = re.sub(r"<(?:class|function) '?([\w.]+).*>", r"\1", default)
            rows.append([f"`{stars}{item.name}`", shape(name, item.name), default, meaning])
        heads = [self.labels[key] for key in ("name", "shape", "default", "meaning")]
        return [f"**{self.labels['arguments']}**", "", *grid(heads, rows), ""] if rows else []

    def meaning(self, name: str, argument: str, own: str | None) -> str:
        """What an argument means."""
        from longspan.inputs import INPUTS

        if self.is_chinese:
            return chinese_argument(name, argument) or own or ""
        if own:
            return own
        return INPUTS[argument].meaning if argument in INPUTS else common_arguments().get(argument, "")

    def returned(self, name: str) -> list[str]:
        """The fields of what a model returns."""
        output = output_of(name)
        if output is None:
            return []
        fields = [field.name for field in dataclasses.fields(output)]
        rows = [[f"`{field}`", table("outputs").get(field, ["", ""])[self.is_chinese]] for field in fields]
        shapes = " ".join(next(parts(output, "text"), "").split())
        heads = [self.labels[key] for key in ("field", "meaning")]
        title = f"**{self.labels['returns']}** `{output.__name__}`"
        return [title if self.is_chinese else f"{title}: {shapes}", "", *grid(heads, rows), ""]

    def plain_returns(self, target: Any) -> list[str]:
        """What a function returns."""
        found = [" ".join(item.description.split()) for values in parts(target, "returns") for item in values]
        return [f"**{self.labels['returns']}** {found[0]}", ""] if found and not self.is_chinese else []

    def errors(self, target: Any) -> list[str]:
        """The errors that a docstring names."""
        found = [(str(item.annotation), " ".join(item.description.split()))
                 for values in parts(target, "raises") for item in values]  # fmt: skip
        if self.is_chinese:
            found = [(kind, table("errors").get(kind, text)) for kind, text in found]
        return [f"**{self.labels['raises']}**", "", *(f"- `{kind}`: {text}" for kind, text in found), ""] * bool(found)

    def examples(self, target: Any) -> list[str]:
        """The runnable examples of a docstring, which tests run."""
        found = []
        for value in parts(target, "admonition"):
            if value.kind == "example":
                found += [f"**{self.labels['example']}**", "", "```python", value.contents.rstrip(), "```", ""]
        for value in parts(target, "examples"):
            code = "\n".join(text for kind, text in value if kind.value == "examples")
            found += [f"**{self.labels['example']}**", "", "```python", code, "```", ""]
        return found

    def methods(self, name: str, target: type) -> list[str]:
        """Public methods of a class that is no model."""
        rows = []
        for method, function in vars(target).items():
            function = getattr(function, "__func__", function)
            if method.startswith("_") or not inspect.isfunction(function):
                continue
            text = " ".join(next(parts(function, "text"), "").split("\n\n")[0].split())
            if self.is_chinese:
                text = table("methods").get(method, text)
            arguments = ", ".join(("*" * (item.kind is item.VAR_POSITIONAL) + "**" * (item.kind is item.VAR_KEYWORD))
                                  + item.name for item in signature(function))  # fmt: skip
            rows.append([f"`{method}({arguments})`", text])
        heads = [self.labels[key] for key in ("name", "meaning")]
        return [f"**{self.labels['methods']}**", "", *grid(heads, rows), ""] if rows else []

    @staticmethod
    def place(target: Any) -> tuple[str, int]:
        """File and line of a definition."""
        source = inspect.unwrap(target)
        return Path(inspect.getsourcefile(source) or "").resolve().relative_to(ROOT).as_posix(), (
            inspect.getsourcelines(source)[1]
        )


def grid(heads: list[str], rows: list[list[str]]) -> list[str]:
    """A table in Markdown; columns that are empty throughout are left out."""
    kept = [i for i in range(len(heads)) if any(row[i] for row in rows)]
    lines = [
        [heads[i] for i in kept],
        ["---"] * len(kept),
        *([row[i].replace("|", "\\|") for i in kept] for row in rows),
    ]
    return ["| " + " | ".join(line) + " |" for line in lines]


def shape(name: str, argument: str) -> str:
    """The axes of an input, by the vocabulary."""
    from longspan.inputs import INPUTS, axes_of
    from longspan.tasks import TASKS

    if argument not in INPUTS or not INPUTS[argument].axes or not is_model(name):
        return ""
    for task in TASKS.values():
        if argument in task.labels and any(re.search(rf"[a-z5T]{end}$", name) for end in task.suffixes):
            return f"`{task.labels[argument]}`"
    if name.endswith("ForMultipleChoice"):
        return f"`({', '.join(axes_of(argument, choices=True))})`"
    return " / ".join(f"`({', '.join(axes)})`".replace(",)", ",)") for axes in INPUTS[argument].axes)


def split_name(name: str) -> tuple[str, str, str]:
    """Framework's prefix, family's prefix and task of the name of a model, e.g. `("TF", "Bert", "Model")`."""
    match = re.fullmatch(rf"(TF|Flax|)({'|'.join(PREFIXES)}|)(\w+)", name)
    assert match is not None
    return match.group(1), match.group(2), match.group(3)


def chinese(name: str) -> str:
    """What a name is, in Chinese; empty if the tables do not say."""
    own = table("names").get(name, "")
    before, family, task = split_name(name)
    framework = {"TF": "Keras 3", "Flax": "Flax（JAX）", "": "PyTorch"}[before]
    if is_model(name) or (family and task == "PreTrainedModel"):
        general = table("tasks").get(task, "")
        names = table("families")
        if not general or family not in names:
            return own
        return f"{general.format(family=names[family])}框架：{framework}。{own}".strip()
    if public_names()[name] == "longspan.auto" and not own:
        task = name.partition("AutoModel")[2] or "Model"
        if task in table("auto"):
            return f"{framework}：按检查点 `config.json` 中的 `model_type` 选择{table('auto')[task]}。"
    return own


def chinese_argument(name: str, argument: str) -> str:
    """What an argument means, in Chinese; empty if the tables do not say."""
    arguments = table("arguments")
    of_outputs = table("outputs").get(argument, ["", ""])[1]
    return arguments.get(f"{name}.{argument}") or table("inputs").get(argument) or arguments.get(argument) or of_outputs


def untranslated() -> list[str]:
    """What the Chinese pages lack: names, arguments and fields without a translation."""
    missing = [name for name in public_names() if not chinese(name)]
    for name in public_names():
        target = get(name)
        asked = {item.name for item in signature(target)} | {key.lstrip("*") for key in described(target)}
        if is_model(name):
            asked |= {item.name for item in signature(call_of(name)[1])}
            output = output_of(name)
            fields = [] if output is None else [field.name for field in dataclasses.fields(output)]
            missing += [f"outputs: {field}" for field in fields if field not in table("outputs")]
        missing += [f"{name}.{argument}" for argument in asked if not chinese_argument(name, argument)]
    return sorted(set(missing))


def pages(language: str) -> dict[str, str]:
    """Markdown by name of page; `index` lists all names."""
    writer, all_names = Writer(language), page_names()
    return {"index": writer.index(all_names)} | {page: writer.page(page, names) for page, names in all_names.items()}
