"""Published models in and out: families of Hugging Face and torchvision, rules, folders."""
