"""Export: an adapter as LoRA, merged model, GGUF adapter or stored surrogate."""
