"""How text is cut into pieces."""

from stoker.routing.pieces import Pieces, normalised


def test_normalised_text_has_one_form():
    assert normalised("  Ещё\tДЕНЬ,  Café \uff26oo ") == "еще день, cafe foo"  # noqa: RUF001


def test_the_short_i_keeps_its_breve():
    assert normalised("Йод й") == "йод й"


def test_only_the_beginning_is_read():
    assert len(normalised("a" * 200_000)) == 2_000


def test_a_whole_word_is_one_piece():
    pieces = Pieces({"▁card": -5.0, "▁ca": -1.0, "rd": -1.0})
    assert pieces.cut("card") == [0]


def test_a_rare_word_is_cut_at_the_most_probable_place():
    pieces = Pieces({"▁a": -1.0, "▁ab": -2.0, "bc": -1.0, "c": -4.0, "d": -1.0})
    assert pieces.cut("abcd") == [0, 2, 4]  # -3 rather than -7


def test_numbers_and_marks_have_pieces_of_their_own():
    pieces = Pieces({"▁a": -1.0})
    assert pieces.cut("12 1234 ? !") == [1, 2, 3, 4]
    assert len(pieces) == 5


def test_letters_that_are_not_in_the_vocabulary_are_left_out():
    assert Pieces({"▁a": -1.0}).cut("b 你好 a") == [0]
