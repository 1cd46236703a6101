"""The Hugging Face Hub: names of repositories, requests with retries, downloads.

Everything goes through ``huggingface_hub``, so ``HF_ENDPOINT``, ``HF_HOME``, ``HF_TOKEN`` and
``HF_HUB_OFFLINE`` have their usual meaning. No message shows a token.
"""
