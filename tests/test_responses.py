"""What is shown of a response on the way adds up to the response."""

import numpy as np

from orthus_jax.inference.responses import Response, preview


class Bytes:
  """A decoder whose tokens are bytes."""

  image = 1000

  def decode(self, ids):
    return bytes(ids).decode("utf-8", errors="replace")


def feed(response, tokens):
  tokens = np.asarray(tokens)
  return response.add(tokens, np.arange(len(tokens))[:, None].astype(np.float32))


def test_pieces_add_up_across_pictures_and_half_characters():
  response = Response(Bytes(), patches=2)
  word = list("é one".encode())
  pieces = [feed(response, word[:1]), feed(response, word[1:])]
  assert pieces == ["", "é one"]  # half a character waits for the other half
  assert feed(response, [1000]) == "" and len(response.unfinished) == 1 and response.pictures == 0
  assert feed(response, [1000, *b" two", 1000]) == " two"
  assert response.unfinished.tolist() == [[5.0]] and response.pictures == 1
  assert feed(response, [1000, *b"x", 0xC3]) == "x"
  assert response.end() == "\N{REPLACEMENT CHARACTER}"
  texts = [x for x in response.texts_and_pictures if isinstance(x, str)]
  assert texts == ["é one", "two", "x\N{REPLACEMENT CHARACTER}"] and response.pictures == 2
  np.testing.assert_array_equal(response.texts_and_pictures[1], [[0.0], [0.0]])


def test_a_picture_that_was_cut_off_is_dropped():
  response = Response(Bytes(), patches=3)
  feed(response, [*b"a", 1000, 1000])
  assert response.end() == "" and response.texts_and_pictures == ["a"] and response.unfinished is None


def test_what_is_not_drawn_yet_is_grey():
  pixels = np.full((8, 8, 3), 7, np.uint8)
  shown = preview(pixels, 6, 16)
  assert (shown[:2] == 7).all() and (shown[2:4, :4] == 7).all() and (shown == 128).sum() == 3 * (64 - 16 - 8)
