from rl_core.data.cursor import DataCursor


def test_every_row_is_drawn_once_per_epoch_in_a_new_order():
    cursor = DataCursor(size=10, seed=3)
    first, second = cursor.draw(10), cursor.draw(10)
    assert sorted(first) == sorted(second) == list(range(10))
    assert first.tolist() != second.tolist()
    assert cursor.epoch == 2.0


def test_a_position_is_all_a_resume_needs():
    whole = DataCursor(size=7, seed=5).draw(40)
    again = DataCursor(size=7, seed=5, position=13)
    assert again.draw(27).tolist() == whole[13:].tolist()


def test_different_seeds_draw_different_orders():
    assert DataCursor(size=50, seed=0).draw(50).tolist() != DataCursor(size=50, seed=1).draw(50).tolist()
