package window

// list is a doubly linked list through the items themselves. An item is in one
// list at a time, so moving it allocates nothing and finding it costs nothing.
type list struct {
	head, tail *Item
	n          int
}

// insertBefore puts it in front of at; a nil at means the end.
func (l *list) insertBefore(it, at *Item) {
	it.in, it.next = l, at
	if at == nil {
		it.prev, l.tail = l.tail, it
	} else {
		it.prev, at.prev = at.prev, it
	}
	if it.prev == nil {
		l.head = it
	} else {
		it.prev.next = it
	}
	l.n++
}

func (l *list) push(it *Item) { l.insertBefore(it, nil) }

// before reports whether an item comes before another: by entry ID, which is the order within
// a stream, and for equal IDs of two streams by stream.
func (it *Item) before(other *Item) bool {
	if it.ID == other.ID {
		return it.Stream < other.Stream
	}
	return it.ID.Less(other.ID)
}

// insertByID keeps the list in stream order. New entries belong at the end and
// redelivered ones near the beginning, so both ends are tried first.
func (l *list) insertByID(it *Item) {
	if l.head != nil && it.before(l.head) {
		l.insertBefore(it, l.head)
		return
	}
	after := l.tail
	for after != nil && it.before(after) {
		after = after.prev
	}
	if after == nil {
		l.insertBefore(it, l.head)
	} else {
		l.insertBefore(it, after.next)
	}
}

// insertByDue keeps the list in the order of due times.
func (l *list) insertByDue(it *Item) {
	after := l.tail
	for after != nil && it.due < after.due {
		after = after.prev
	}
	if after == nil {
		l.insertBefore(it, l.head)
	} else {
		l.insertBefore(it, after.next)
	}
}

// leave takes the item out of the list that it is in.
func (it *Item) leave() {
	l := it.in
	if l == nil {
		return
	}
	if it.prev == nil {
		l.head = it.next
	} else {
		it.prev.next = it.next
	}
	if it.next == nil {
		l.tail = it.prev
	} else {
		it.next.prev = it.prev
	}
	it.in, it.prev, it.next = nil, nil, nil
	l.n--
}
