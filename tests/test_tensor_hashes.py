import numpy as np
import torch

from diptych.data import draws
from diptych.data.tokenizer import train_vocabulary
from diptych.tensor_hashes import caption_identities, hashes


def test_tensors_have_the_hashes_that_arrays_have():
    values = np.array([0, 1, 77, 2**62, -3], dtype=np.int64)
    assert hashes(torch.from_numpy(values)).numpy().view(np.uint64).tolist() == draws.hashes(values).tolist()


def test_captions_with_equal_tokens_have_the_same_identity():
    captions = ["a red fox", "A&nbsp;Red fox", "A  Red fox\n", "a red dog", "red a fox", "a red fox fox", "a red"]
    tokens, _ = train_vocabulary(captions, 520)(captions, 12)
    identities = caption_identities(torch.from_numpy(tokens))
    assert identities.dtype == torch.int64
    assert [int((identities == each).nonzero()[0]) for each in identities] == [0, 0, 0, 3, 4, 5, 6]
    # The identity depends only on the tokens, so that all ranks agree about it.
    assert torch.equal(caption_identities(torch.from_numpy(tokens[2:4])), identities[2:4])
    assert identities[0] == 1101037442453625923
