"""The KV cache of one block and of all blocks."""

import torch

from pyramid_model.dit.kv_cache import BlockKVCache, KVCache


def keys_and_values(num_tokens: int, seed: int = 0):
    return torch.randn(2, 1, num_tokens, 2, 4, generator=torch.Generator().manual_seed(seed)).unbind()


def test_a_block_returns_all_tokens_and_caches_the_first_ones():
    cache, (k, v), (more_k, more_v) = BlockKVCache(), keys_and_values(5), keys_and_values(3, seed=1)
    assert torch.equal(cache.extend(k, v, num_tokens=4)[0], k)
    assert cache.num_tokens == 4
    keys, values = cache.extend(more_k, more_v, num_tokens=4)
    assert torch.equal(keys, torch.cat([k[:, :4], more_k], dim=1))
    assert torch.equal(values, torch.cat([v[:, :4], more_v], dim=1))
    assert cache.num_bytes == 2 * 4 * 2 * 4 * 4


def test_cutting_to_frames_cuts_every_block_at_the_end_of_the_last_frame():
    cache = KVCache(2)
    for block in cache.blocks:
        block.extend(*keys_and_values(9), num_tokens=9)
    cache.ends = (5, 7, 9)
    cache.cut(2)
    assert cache.num_frames == 2
    assert [block.num_tokens for block in cache.blocks] == [7, 7]
    cache.cut(0)
    assert cache.num_bytes == 0
