"""PEFT: which layers of each family an adapter goes to unless `target_modules` says so."""

from __future__ import annotations

#: the projections of queries and values, which PEFT takes for the families that it knows
TARGET_MODULES: dict[str, list[str]] = {
    "bert": ["query", "value"],
    "roberta": ["query", "value"],
    "xlm-roberta": ["query", "value"],
    "longformer": ["query", "value", "query_global", "value_global"],
    "longt5": ["q", "v"],
    "diffllama": ["q_proj", "v_proj"],
    "mega": ["v_proj", "mx_proj"],
}


def register_target_modules() -> None:
    """Add the families of longspan to PEFT's tables, where PEFT has no entry of its own.

    Example:
        >>> from peft import LoraConfig, get_peft_model
        >>> from longspan import LongT5Config, LongT5ForConditionalGeneration
        >>> from longspan.integrations.peft import register_target_modules
        >>> register_target_modules()
        >>> config = LongT5Config(vocab_size=30, d_model=8, d_kv=4, num_heads=2, d_ff=8, num_layers=1)
        >>> model = get_peft_model(LongT5ForConditionalGeneration(config), LoraConfig(task_type="SEQ_2_SEQ_LM"))
        >>> sorted(model.targeted_module_names)[0]
        'decoder.block.0.layer.0.SelfAttention.q'
    """
    from peft.utils import constants

    for name, table in vars(constants).items():
        if name.endswith("_TARGET_MODULES_MAPPING") and table.get("bert") == ["query", "value"]:
            for family, modules in TARGET_MODULES.items():
                table.setdefault(family, list(modules))
