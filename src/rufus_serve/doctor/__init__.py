"""`rufus-serve doctor`: examines hosts before anything is started; imports no ray, vllm or torch.

Read in this order: `finding`, `system` (the seam to the host), `context`, `examination` (the list
of checks), `report`; then `messages`, `probe`, `links` and `all_nodes` for several hosts.
"""
