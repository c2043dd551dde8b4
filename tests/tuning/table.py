"""The tuning methods and combinations that every test of the table walks over: id -> (tuning, options)."""

LOHA = {"peft_type": "LOHA", "r": 2, "alpha": 4, "target_modules": ["q_proj", "v_proj"]}

CASES: dict[str, tuple[str, dict]] = {
    "bias": ("bias", {}),
    "norms": ("norms", {}),
    "last_blocks": ("last_blocks", {"last_blocks": 2}),
    "ssf": ("ssf", {}),
    "sparse": ("sparse", {"sparse_ratio": 0.1}),
    "ia3": ("ia3", {}),
    "rslora": ("lora", {"lora_rank": 2, "lora_rslora": True}),
    "dora": ("lora", {"lora_rank": 2, "lora_dora": True}),
    "pissa": ("lora", {"lora_rank": 2, "lora_init": "pissa"}),
    "olora": ("lora", {"lora_rank": 2, "lora_init": "olora"}),
    "loha": ("peft", {"peft_config": LOHA}),
    "lora+norms": ("lora,norms", {"lora_rank": 2}),
    "everything": (
        "norms,vpt_deep,ssf,bias,sparse,adaptformer,last_blocks,lora",
        {"lora_rank": 2, "prompt_length": 3, "adapter_width": 4},
    ),
}
