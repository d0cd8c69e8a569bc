"""Caches: growth, fixed buffers, legacy tuples, batches, errors."""

from __future__ import annotations

import pytest
import torch

from longspan import BertConfig, DiffLlamaConfig
from longspan.errors import ConfigError, InputError
from longspan.nn.torch.cache import DynamicCache, EncoderDecoderCache, StaticCache

BATCH, HEADS, DIM, LAYERS = 3, 2, 4, 2
CONFIG = DiffLlamaConfig(
    hidden_size=16,
    num_attention_heads=4,
    num_key_value_heads=HEADS,
    num_hidden_layers=LAYERS,
    max_position_embeddings=9,
)


def pair(tokens, *, batch=BATCH):
    return torch.randn(2, batch, HEADS, tokens, DIM).unbind(0)


def filled(tokens=5):
    cache = DynamicCache()
    for layer in range(LAYERS):
        cache.update(*pair(tokens), layer)
    return cache


class TestDynamicCache:
    def test_grows_by_what_it_is_given(self):
        cache, first, second = DynamicCache(), pair(3), pair(2)
        assert cache.get_seq_length() == 0
        assert len(cache) == 0
        cache.update(*first, 0)
        key, value = cache.update(*second, 0)
        assert torch.equal(key, torch.cat((first[0], second[0]), dim=2))
        assert torch.equal(value, torch.cat((first[1], second[1]), dim=2))
        assert cache.get_seq_length() == 5
        assert cache.get_seq_length(1) == 0
        assert cache.get_max_cache_shape() is None

    def test_reads_as_nested_tuples(self):
        cache = filled()
        assert len(cache) == LAYERS
        assert [len(layer) for layer in cache] == [2, 2]
        legacy = cache.to_legacy_cache()
        assert isinstance(legacy, tuple)
        assert legacy[1][0] is cache[1][0]
        again = DynamicCache.from_legacy_cache(legacy)
        assert all(torch.equal(a, b) for x, y in zip(again, cache, strict=True) for a, b in zip(x, y, strict=True))
        assert len(DynamicCache.from_legacy_cache(None)) == 0

    def test_indexing_ends_like_a_tuple(self):
        with pytest.raises(IndexError):
            filled()[LAYERS]

    @pytest.mark.parametrize(("length", "kept"), [(2, 2), (0, 0), (9, 5), (-2, 3), (-7, 0)])
    def test_crop(self, length, kept):
        cache = filled()
        before = cache[1][1]
        cache.crop(length)
        assert cache.get_seq_length() == kept
        assert torch.equal(cache[1][1], before[:, :, :kept])

    def test_rows_of_the_batch(self):
        cache = filled()
        before = cache.to_legacy_cache()
        cache.reorder_cache(torch.tensor([2, 0, 0]))
        assert torch.equal(cache[1][0], before[1][0][[2, 0, 0]])
        cache.batch_select_indices(torch.tensor([1]))
        assert torch.equal(cache[0][1], before[0][1][[0]])
        cache.batch_repeat_interleave(2)
        assert torch.equal(cache[0][1], before[0][1][[0, 0]])

    def test_reset(self):
        cache = filled()
        cache.reset()
        assert len(cache) == cache.get_seq_length() == 0

    def test_gradients_flow_through_it(self):
        cache, (key, value) = DynamicCache(), pair(2)
        key.requires_grad_()
        cache.update(key, value, 0)
        cache.update(*pair(1), 0)[0].sum().backward()
        assert torch.equal(key.grad, torch.ones_like(key))

    def test_errors(self):
        cache = filled()
        with pytest.raises(
            InputError, match=r"must be \(batch, heads, tokens, head size\).* \(3, 2, 4\) and \(3, 2, 1"
        ):
            cache.update(pair(1)[0][:, :, 0], pair(1)[1], 0)
        with pytest.raises(
            InputError, match=r"agree in the first three.*\(3, 2, 1, 4\) and \(3, 2, 2, 4\) \(layer 1\)"
        ):
            cache.update(pair(1)[0], pair(2)[1], 1)
        with pytest.raises(
            InputError, match=r"agree with the cache in batch, heads and head size.*\(2, 2, 1, 4\) for a"
        ):
            cache.update(*pair(1, batch=2), 0)
        with pytest.raises(InputError, match="must be filled in order. Received: layer 3 while 2 are filled"):
            cache.update(*pair(1), 3)
        with pytest.raises(InputError, match=r"must hold \(key, value\). Received: 4 tensors \(layer 0\)"):
            DynamicCache.from_legacy_cache([(*pair(1), *pair(1))])


class TestStaticCache:
    def test_writes_at_the_positions(self):
        cache = StaticCache(CONFIG, BATCH, 7, "cpu", torch.float32)
        first, second = pair(3), pair(2)
        cache.update(*first, 0, torch.arange(3))
        key, value = cache.update(*second, 0, torch.tensor([3, 4]))
        assert key.shape == value.shape == (BATCH, HEADS, 7, DIM)
        assert torch.equal(key[:, :, :5], torch.cat((first[0], second[0]), dim=2))
        assert (value[:, :, 5:] == 0).all()
        assert cache.get_seq_length() == 5
        assert cache.get_seq_length(1) == 0
        assert cache.get_max_cache_shape() == 7

    def test_without_positions_tokens_follow_one_another(self):
        cache, first, second = StaticCache(CONFIG, BATCH, 7), pair(3), pair(2)
        cache.update(*first, 1)
        key, _ = cache.update(*second, 1)
        assert torch.equal(key[:, :, :5], torch.cat((first[0], second[0]), dim=2))

    def test_length_is_a_copy(self):
        cache = StaticCache(CONFIG, BATCH, 7)
        cache.update(*pair(3), 0)
        length = cache.get_seq_length()
        cache.update(*pair(1), 0)
        assert int(length) == 3

    def test_sizes_come_from_the_config_and_the_first_update(self):
        cache = StaticCache(CONFIG)
        assert cache.get_seq_length() == 0
        assert cache.get_max_cache_shape() == 9
        key, value = (tensor.to(torch.bfloat16) for tensor in pair(3))
        assert cache.update(key, value, 0)[0].dtype == torch.bfloat16
        assert cache[1][0].shape == (BATCH, HEADS, 9, DIM)
        bert = StaticCache(
            BertConfig(hidden_size=48, num_attention_heads=6, num_hidden_layers=3), 2, 5, "cpu", torch.half
        )
        assert len(bert) == 3
        assert bert[2][0].shape == (2, 6, 5, 8)

    def test_fewer_rows_than_it_holds(self):
        cache = StaticCache(CONFIG, BATCH, 7, "cpu", torch.float32)
        assert cache.update(*pair(2, batch=1), 0)[0].shape[0] == 1
        assert (cache[0][0][1:] == 0).all()

    def test_buffers_stay_where_they_are(self):
        cache = StaticCache(CONFIG, BATCH, 7, "cpu", torch.float32)
        places = [tensor.data_ptr() for layer in cache for tensor in layer]
        for layer in range(LAYERS):
            cache.update(*pair(4), layer)
        cache.reorder_cache(torch.tensor([2, 1, 0]))
        cache.reset()
        assert places == [tensor.data_ptr() for layer in cache for tensor in layer]
        assert cache.get_seq_length() == 0
        assert all((tensor == 0).all() for layer in cache for tensor in layer)

    def test_reorder(self):
        cache = StaticCache(CONFIG, BATCH, 7)
        cache.update(*pair(4), 0)
        before = cache[0][0].clone()
        cache.reorder_cache(torch.tensor([2, 2, 0]))
        assert torch.equal(cache[0][0], before[[2, 2, 0]])

    def test_legacy_form(self):
        cache = StaticCache(CONFIG, BATCH, 7, "cpu", torch.float32)
        assert [tensor.shape[2] for layer in cache.to_legacy_cache() for tensor in layer] == [7] * 4

    def test_errors(self):
        cache = StaticCache(CONFIG, BATCH, 4)
        with pytest.raises(
            InputError, match="without device, dtype and max_batch_size is empty before its first update"
        ):
            cache[0]
        cache.update(*pair(2), 0)
        with pytest.raises(InputError, match="cache_position must stay below max_cache_len=4.*Received: position 4"):
            cache.update(*pair(3), 0)
        with pytest.raises(InputError, match=r"max_batch_size=3 and max_cache_len=4 cannot take.* \(3, 2, 5, 4\)"):
            cache.update(*pair(5), 0)
        with pytest.raises(InputError, match=r"cannot take more rows or tokens.* \(4, 2, 1, 4\)"):
            cache.update(*pair(1, batch=4), 0)
        with pytest.raises(InputError, match=r"agree with the cache in heads and head size.*\(3, 1, 1, 4\)"):
            cache.update(*(tensor[:, :1] for tensor in pair(1)), 0)
        with pytest.raises(
            InputError, match="cache's dtype and device. Received: torch.float64 on cpu for a cache of torc"
        ):
            cache.update(*(tensor.double() for tensor in pair(1)), 0)
        for name in ("max_batch_size", "max_cache_len"):
            with pytest.raises(ConfigError, match=f"{name} must be positive. Received: {name}=0"):
                StaticCache(CONFIG, **{name: 0})


class TestEncoderDecoderCache:
    def filled(self):
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        for layer in range(LAYERS):
            cache.update(*pair(2), layer)
            cache.update_cross(*pair(6), layer)
        return cache

    def test_layers_hold_two_tensors_then_four(self):
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        cache.update(*pair(2), 0)
        assert [len(layer) for layer in cache] == [2]
        assert not cache.is_updated.get(0)
        cache.update_cross(*pair(6), 0)
        assert [len(layer) for layer in cache] == [4]
        assert cache.is_updated[0]

    def test_lengths_are_those_of_the_own_tokens(self):
        cache = self.filled()
        cache.update(*pair(1), 0)
        assert cache.get_seq_length() == 3
        assert cache.cross_attention_cache.get_seq_length() == 6
        assert cache.get_max_cache_shape() is None
        assert EncoderDecoderCache(StaticCache(CONFIG), DynamicCache()).get_max_cache_shape() == 9

    def test_legacy_round_trip(self):
        cache = self.filled()
        again = EncoderDecoderCache.from_legacy_cache(cache.to_legacy_cache())
        assert again.is_updated == {0: True, 1: True}
        assert all(a is b for x, y in zip(again, cache, strict=True) for a, b in zip(x, y, strict=True))
        own = EncoderDecoderCache.from_legacy_cache([pair(2), pair(2)])
        assert own.is_updated == {}
        assert len(own) == 2

    def test_rows_and_crop(self):
        cache = self.filled()
        before = cache.to_legacy_cache()
        cache.reorder_cache(torch.tensor([2, 1, 0]))
        assert all(torch.equal(a, b[[2, 1, 0]]) for a, b in zip(cache[1], before[1], strict=True))
        cache.batch_select_indices(torch.tensor([0]))
        cache.batch_repeat_interleave(2)
        assert all(torch.equal(a, b[[2, 2]]) for a, b in zip(cache[1], before[1], strict=True))
        cache.crop(1)
        assert [tensor.shape[2] for tensor in cache[0]] == [1, 1, 6, 6]

    def test_errors(self):
        with pytest.raises(
            InputError, match=r"\(key, value, cross key, cross value\). Received: 3 tensors \(layer 0\)"
        ):
            EncoderDecoderCache.from_legacy_cache([(*pair(1), pair(1)[0])])
        with pytest.raises(InputError, match="a cache that can change its size. Received: StaticCache"):
            EncoderDecoderCache(StaticCache(CONFIG), DynamicCache()).crop(1)
        for cache in (StaticCache(CONFIG), EncoderDecoderCache(DynamicCache(), StaticCache(CONFIG))):
            with pytest.raises(InputError, match="a cache that can change its size. Received: StaticCache"):
                cache.batch_repeat_interleave(2)
