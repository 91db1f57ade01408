"""Inference engines: vLLM in this process, and vLLM servers. `types` says what an engine is; a policy drives one."""
