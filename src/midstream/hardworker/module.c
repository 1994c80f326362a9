// SPDX-License-Identifier: MIT
/* midstream.hardworker._ring: the reader of ring.c, for Python (its stable ABI, from 3.11 on). */
#define Py_LIMITED_API 0x030b0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <string.h>
#include <structmember.h>

#include "ring.h"

_Static_assert(sizeof(void *) == sizeof(unsigned long long), "Python sees each field of struct reader as such");

/* The memory that struct reader points into. It stays as long as the object does. */
enum buffer { CONSUMER, PAGES, JOURNAL, WORD, PLAN, BUFFERS };

struct ring_reader {
	PyObject_HEAD
	struct reader reader;
	Py_buffer buffers[BUFFERS];
	PyObject *message;   /* the type of messages, a tuple's, */
	newfunc make;	     /* and its constructor */
	PyObject *addresses; /* of the sensors, by number, */
	PyObject *address;   /* and this one's: */
	uint16_t sensor;
	PyObject *stream; /* the name of the stream that all its messages are of */
	PyObject *values; /* what a cycle gives: a slice of this view of the ring, or of a list the item at the number found */
	PyObject *kept;	  /* what else has to stay: the memory of columns */
};

static struct reader *of(PyObject *self)
{
	return &((struct ring_reader *)self)->reader;
}

static PyObject *none(void)
{
	Py_IncRef(Py_None);
	return Py_None;
}

static PyObject *make(PyTypeObject *type, PyObject *arguments, PyObject *keywords)
{
	static char *names[] = { "consumer",	"pages",    "journal", "word",	"copy_size",
				 "connections", "patience", "retain",  "timer", NULL };
	allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
	struct ring_reader *self = (struct ring_reader *)allocate(type, 0);
	struct reader *reader;
	Py_buffer *buffers;
	uint64_t page;

	if (!self)
		return NULL;
	reader = &self->reader;
	buffers = self->buffers;
	if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "w*y*w*w*KKKKK:RingReader", names, &buffers[CONSUMER],
					 &buffers[PAGES], &buffers[JOURNAL], &buffers[WORD], &reader->copy_size, &reader->most,
					 &reader->patience, &reader->retain, &reader->timer)) {
		memset(buffers, 0, sizeof(self->buffers)); /* what it took, it has let go of */
		Py_DecRef((PyObject *)self);
		return NULL;
	}
	page = buffers[CONSUMER].len;
	if (page < sizeof(uint64_t) || (uint64_t)buffers[PAGES].len <= page ||
	    (uint64_t)buffers[JOURNAL].len < sizeof(uint64_t) + 2 * reader->copy_size ||
	    (uint64_t)buffers[WORD].len < sizeof(*reader->word)) {
		Py_DecRef((PyObject *)self);
		PyErr_SetString(PyExc_ValueError, "no ring: its memory is too small");
		return NULL;
	}
	reader->consumer = buffers[CONSUMER].buf;
	reader->producer = buffers[PAGES].buf;
	reader->data = (const uint8_t *)buffers[PAGES].buf + page;
	reader->mask = (buffers[PAGES].len - page) / 2 - 1;
	reader->journal = buffers[JOURNAL].buf;
	reader->word = buffers[WORD].buf;
	reader->table_size = (buffers[WORD].len - sizeof(*reader->word)) / 2;
	reader->position = reader->released = *reader->consumer;
	reader->seen = *reader->producer;
	reader->found = NOTHING;
	if (reader_restore(reader)) {
		Py_DecRef((PyObject *)self);
		return PyErr_NoMemory();
	}
	reader->end = reader->committed = reader->position;
	return (PyObject *)self;
}

static void dealloc(PyObject *object)
{
	struct ring_reader *self = (struct ring_reader *)object;
	PyTypeObject *type = Py_TYPE(object);

	for (int buffer = 0; buffer < BUFFERS; buffer++)
		PyBuffer_Release(&self->buffers[buffer]);
	reader_free(&self->reader);
	Py_DecRef(self->message);
	Py_DecRef(self->addresses);
	Py_DecRef(self->address);
	Py_DecRef(self->stream);
	Py_DecRef(self->values);
	Py_DecRef(self->kept);
	((freefunc)PyType_GetSlot(type, Py_tp_free))(object);
	Py_DecRef((PyObject *)type);
}

static PyObject *look(PyObject *self, PyObject *nothing)
{
	(void)nothing;
	of(self)->end = LOOK;
	return none();
}

static PyObject *regular(PyObject *self, PyObject *nothing)
{
	(void)nothing;
	return PyLong_FromUnsignedLongLong(of(self)->framing == FIXED ? reader_regular(of(self)) : 0);
}

static PyObject *heard(PyObject *self, PyObject *memory)
{
	Py_buffer buffer;

	if (PyObject_GetBuffer(memory, &buffer, PyBUF_WRITABLE))
		return NULL;
	if ((size_t)buffer.len < sizeof(of(self)->heard_of)) {
		PyBuffer_Release(&buffer);
		PyErr_SetString(PyExc_ValueError, "no room for the times of all sensors");
		return NULL;
	}
	reader_heard(of(self), buffer.buf);
	PyBuffer_Release(&buffer);
	return none();
}

static PyObject *most_rows(PyObject *self, PyObject *nothing)
{
	(void)nothing;
	return PyLong_FromUnsignedLongLong(reader_most_rows(of(self)));
}

static PyObject *rows(PyObject *self, PyObject *memory)
{
	struct reader *reader = of(self);
	Py_buffer buffer;
	int64_t count;

	if (PyObject_GetBuffer(memory, &buffer, PyBUF_WRITABLE))
		return NULL;
	count = reader_rows(reader, buffer.buf, buffer.len / (sizeof(struct record) + reader->size));
	PyBuffer_Release(&buffer);
	return count < 0 ? PyErr_NoMemory() : PyLong_FromLongLong(count);
}

/* The address of a sensor. Usually it is that of the last message's. A borrowed reference. */
static PyObject *address_of(struct ring_reader *self, uint16_t sensor)
{
	if (!self->address || self->sensor != sensor) {
		PyObject *number = PyLong_FromLong(sensor);
		PyObject *address = number ? PyObject_GetItem(self->addresses, number) : NULL;

		Py_DecRef(number);
		if (!address)
			return NULL;
		Py_DecRef(self->address);
		self->address = address;
		self->sensor = sensor;
	}
	return self->address;
}

/* A tuple's own constructor makes a named tuple, without a call into Python. */
static PyObject *make_message(struct ring_reader *self, const struct message *found)
{
	PyObject *address = address_of(self, found->record->sensor);
	PyObject *payload = address ? PyBytes_FromStringAndSize(NULL, found->length) : NULL;
	PyObject *values, *arguments, *made;
	uint64_t sequence = found->open->sequence;

	if (!payload)
		return NULL;
	if (self->reader.framing == FIXED)
		sequence = found->open->next / self->reader.size;
	Py_IncRef(address);
	values = PyTuple_New(6);
	arguments = PyTuple_New(1);
	if (!values || !arguments) {
		Py_DecRef(values);
		Py_DecRef(arguments);
		Py_DecRef(address);
		Py_DecRef(payload);
		return NULL;
	}
	PyTuple_SetItem(values, 0, address);
	PyTuple_SetItem(values, 1, PyLong_FromUnsignedLong(found->record->connection));
	PyTuple_SetItem(values, 2, PyLong_FromUnsignedLongLong(sequence));
	PyTuple_SetItem(values, 3, PyLong_FromUnsignedLongLong(found->record->time));
	PyTuple_SetItem(values, 4, payload);
	Py_IncRef(self->stream);
	PyTuple_SetItem(values, 5, self->stream);
	PyTuple_SetItem(arguments, 0, values);
	made = PyErr_Occurred() ? NULL : self->make((PyTypeObject *)self->message, arguments, NULL);
	if (made)
		reader_take(&self->reader, found, (uint8_t *)PyBytes_AsString(payload));
	Py_DecRef(arguments);
	return made;
}

static PyObject *message(PyObject *object, PyObject *nothing)
{
	struct ring_reader *self = (struct ring_reader *)object;
	struct message found;

	(void)nothing;
	if (!self->make) {
		PyErr_SetString(PyExc_ValueError, "`begin` is to be called first");
		return NULL;
	}
	switch (reader_message(&self->reader, &found)) {
	case 1:
		return make_message(self, &found);
	case 0:
		return none();
	default:
		return PyErr_NoMemory();
	}
}

static PyObject *commit(PyObject *self, PyObject *nothing)
{
	(void)nothing;
	return PyBool_FromLong(reader_commit(of(self)));
}

/* Adds to a list what of a run lies in the ring, each piece without a gap as it is to be kept. */
static int list_run(PyObject *list, uint32_t connection, const struct run *run)
{
	uint64_t offset = run->start;
	const struct part *part = run->first;

	while (part) {
		const struct part *end = part;
		Py_ssize_t length = 0;
		PyObject *bytes, *piece;
		uint8_t *to;
		int failed;

		for (; end && end->position != NOTHING; end = end->next)
			length += end->length;
		if (!length) {
			offset += part->length;
			part = part->next;
			continue;
		}
		bytes = PyBytes_FromStringAndSize(NULL, length);
		if (!bytes)
			return -1;
		for (to = (uint8_t *)PyBytes_AsString(bytes); part != end; to += part->length, part = part->next)
			memcpy(to, part->data, part->length);
		piece = Py_BuildValue("(IKN)", connection, (unsigned long long)offset, bytes);
		failed = !piece || PyList_Append(list, piece);
		Py_DecRef(piece);
		if (failed)
			return -1;
		offset += length;
	}
	return 0;
}

static PyObject *crowding(PyObject *self, PyObject *nothing)
{
	const struct reader *reader = of(self);
	PyObject *list = PyList_New(0);

	(void)nothing;
	for (uint64_t row = 0; list && row < reader->connections; row++) {
		const struct stream *stream = reader->streams + row;
		uint32_t connection = reader->table[row].connection;
		int failed;

		if (!reader_is_crowded(reader, row))
			continue;
		failed = list_run(list, connection, &stream->ready);
		for (uint32_t early = 0; !failed && early < stream->early_count; early++)
			failed = list_run(list, connection, stream->early + early);
		if (failed) {
			Py_DecRef(list);
			return NULL;
		}
	}
	return list;
}

static PyObject *keep_crowding(PyObject *self, PyObject *nothing)
{
	(void)nothing;
	return reader_keep(of(self)) ? PyErr_NoMemory() : none();
}

static PyObject *unfinished(PyObject *self, PyObject *nothing)
{
	const struct reader *reader = of(self);
	PyObject *found = PyDict_New();

	(void)nothing;
	for (uint64_t row = 0; found && row < reader->connections; row++) {
		const struct open *open = reader->table + row;
		PyObject *key, *value;
		int failed;

		if (open->state != MIDST)
			continue;
		key = PyLong_FromUnsignedLong(open->connection);
		value = Py_BuildValue("(KK)", (unsigned long long)open->next, (unsigned long long)open->from);
		failed = !key || !value || PyDict_SetItem(found, key, value);
		Py_DecRef(key);
		Py_DecRef(value);
		if (failed) {
			Py_DecRef(found);
			return NULL;
		}
	}
	return found;
}

static PyObject *restore(PyObject *self, PyObject *pieces)
{
	Py_ssize_t count = PyList_Size(pieces);

	for (Py_ssize_t piece = 0; piece < count; piece++) {
		unsigned long long offset;
		unsigned int connection;
		Py_ssize_t length;
		const char *data;

		if (!PyArg_ParseTuple(PyList_GetItem(pieces, piece), "IKy#", &connection, &offset, &data, &length))
			return NULL;
		if (reader_restore_kept(of(self), connection, offset, (const uint8_t *)data, length))
			return PyErr_NoMemory();
	}
	if (count < 0)
		return NULL;
	reader_restored(of(self));
	return none();
}

static PyObject *totals(PyObject *self, PyObject *nothing)
{
	const struct reader *reader = of(self);

	(void)nothing;
	return Py_BuildValue("(KKKKKKK)", (unsigned long long)reader->messages, (unsigned long long)reader->bytes,
			     (unsigned long long)reader->opened, (unsigned long long)reader->finished,
			     (unsigned long long)reader->reset, (unsigned long long)reader->broken,
			     (unsigned long long)reader->skipped);
}

static PyObject *abandon(PyObject *self, PyObject *nothing)
{
	(void)nothing;
	reader_abandon(of(self));
	return none();
}

static PyObject *give_back(PyObject *self, PyObject *nothing)
{
	(void)nothing;
	reader_give_back(of(self));
	return none();
}

static void keep(PyObject **place, PyObject *object)
{
	PyObject *before = *place;

	Py_IncRef(object);
	*place = object;
	Py_DecRef(before);
}

static PyObject *begin(PyObject *object, PyObject *arguments, PyObject *keywords)
{
	static char *names[] = { "framing", "size", "message", "addresses", "stream", "stop", "event", "period", "follow", NULL };
	struct ring_reader *self = (struct ring_reader *)object;
	struct reader *reader = &self->reader;
	PyObject *message, *addresses, *stream;

	if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "KKOOUKKKK:begin", names, &reader->framing, &reader->size, &message,
					 &addresses, &stream, &reader->stop, &reader->event, &reader->period, &reader->follow))
		return NULL;
	if (reader->framing > LINE || (reader->framing == FIXED && !reader->size) || !PyType_Check(message) ||
	    !PyType_IsSubtype((PyTypeObject *)message, &PyTuple_Type)) {
		PyErr_SetString(PyExc_ValueError, "no framing, no size, or a message that is no tuple");
		return NULL;
	}
	keep(&self->message, message);
	keep(&self->addresses, addresses);
	keep(&self->stream, stream);
	self->make = (newfunc)PyType_GetSlot(&PyTuple_Type, Py_tp_new);
	Py_DecRef(self->address);
	self->address = NULL;
	return none();
}

static PyObject *prepare(PyObject *object, PyObject *arguments, PyObject *keywords)
{
	static char *names[] = { "plan", "values", "kept", NULL };
	struct ring_reader *self = (struct ring_reader *)object;
	struct reader *reader = &self->reader;
	PyObject *values, *kept;
	Py_buffer plan;

	if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "y*OO:prepare", names, &plan, &values, &kept))
		return NULL;
	PyBuffer_Release(&self->buffers[PLAN]);
	self->buffers[PLAN] = plan;
	reader->columns = plan.buf;
	reader->columns_count = plan.len / sizeof(*reader->columns);
	reader->usual = reader->columns_count ? PyObject_Size(values) : 0;
	reader->found = NOTHING;
	keep(&self->values, values);
	keep(&self->kept, kept);
	return none();
}

static PyObject *show(PyObject *self, PyObject *arguments)
{
	unsigned long long phase;
	PyObject *view;

	if (!PyArg_ParseTuple(arguments, "KO:show", &phase, &view))
		return NULL;
	of(self)->phase = phase;
	keep(&((struct ring_reader *)self)->values, view);
	return none();
}

/* Was what Python prepared made for as many messages as were found, and for their place? */
static int fits(const struct reader *reader, uint64_t start, uint64_t stride)
{
	if (!reader->found)
		return 1;
	if (reader->columns_count)
		return reader->found < reader->usual;
	return start >= reader->phase && !((start - reader->phase) % stride);
}

static PyObject *give(const struct reader *reader, PyObject *values, uint64_t start, uint64_t stride)
{
	PyObject *columns;
	uint64_t row = 0;

	if (!reader->columns_count) {
		if (reader->found)
			row = (start - reader->phase) / stride;
		return PySequence_GetSlice(values, row, row + reader->found);
	}
	reader_gather(reader);
	columns = PyList_GetItem(values, reader->found);
	Py_IncRef(columns);
	return columns;
}

/* Other threads run while it sleeps, and then Python's handlers of signals: -1 if one raised. Whatever they read, the
 * cycle found nothing.
 */
static int run(struct reader *reader, enum status (*step)(struct reader *))
{
	PyThreadState *thread = PyEval_SaveThread();
	enum status status = step(reader);
	int failed = 0;

	PyEval_RestoreThread(thread);
	if (status == SIGNALLED) {
		failed = PyErr_CheckSignals();
		reader->found = NOTHING;
	}
	reader->status = status;
	return failed;
}

static PyObject *rest(PyObject *self, PyObject *nothing)
{
	struct reader *reader = of(self);

	(void)nothing;
	return run(reader, reader_rest) ? NULL : PyBool_FromLong(reader->status == WHOLE);
}

static PyObject *cycle(PyObject *self, PyObject *nothing)
{
	struct reader *reader = of(self);
	uint64_t start, stride;

	(void)nothing;
	if (run(reader, reader_cycle))
		return NULL;
	if (reader->status == WHOLE) {
		start = reader->start & reader->mask;
		stride = reader_stride(reader->size);
		if (fits(reader, start, stride))
			return give(reader, ((struct ring_reader *)self)->values, start, stride);
		reader->status = UNFIT;
	}
	return none();
}

#define FIELD(name, flags) { #name, T_ULONGLONG, offsetof(struct ring_reader, reader.name), flags, NULL }

static PyMemberDef members[] = {
	FIELD(position, READONLY), FIELD(end, READONLY),	 FIELD(committed, READONLY),   FIELD(released, READONLY),
	FIELD(newest, READONLY),   FIELD(size, READONLY),	 FIELD(start, READONLY),       FIELD(found, READONLY),
	FIELD(status, READONLY),   FIELD(connections, READONLY), FIELD(uncommitted, READONLY), FIELD(spilled, 0),
	FIELD(seen, 0),		   { 0 },
};

static PyMethodDef methods[] = {
	{ "begin", (PyCFunction)(void (*)(void))begin, METH_VARARGS | METH_KEYWORDS, "Say what messages are, and when to look." },
	{ "look", look, METH_NOARGS, "What has been stored until now is what the next three find." },
	{ "regular", regular, METH_NOARGS, "How many of the next records are each a message of fixed size; they are read then." },
	{ "rows", rows, METH_O, "The next messages of fixed size, into these rows; how many." },
	{ "message", message, METH_NOARGS, "The next message; None if there is none yet." },
	{ "most_rows", most_rows, METH_NOARGS, "So many rows are enough for all messages of fixed size." },
	{ "commit", commit, METH_NOARGS, "What has been read is done with; False if that is not possible yet." },
	{ "crowding", crowding, METH_NOARGS, "Connection, offset and bytes that hold too much of the ring." },
	{ "keep_crowding", keep_crowding, METH_NOARGS, "They are kept elsewhere, and need not be in the ring any more." },
	{ "unfinished", unfinished, METH_NOARGS, "By connection, its first byte that is needed, and the first record." },
	{ "restore", restore, METH_O, "What was kept elsewhere, the newest first." },
	{ "totals", totals, METH_NOARGS, "The fields of Totals." },
	{ "abandon", abandon, METH_NOARGS, "All open connections count as reset." },
	{ "heard", heard, METH_O, "When the last data of each sensor came, into this memory." },
	{ "give_back", give_back, METH_NOARGS, "Give room back, as far as the logger has what lies in it." },
	{ "prepare", (PyCFunction)(void (*)(void))prepare, METH_VARARGS | METH_KEYWORDS, "Say what cycles give." },
	{ "show", show, METH_VARARGS, "Let cycles give slices of this view, whose first row begins at this place." },
	{ "rest", rest, METH_NOARGS, "Commit, sleep, look; False, where Python has to go on, as `status` says." },
	{ "cycle", cycle, METH_NOARGS, "That, and `regular`; None, where Python has to go on, as `status` says." },
	{ 0 },
};

static PyType_Slot slots[] = {
	{ Py_tp_doc, "A reader of a ring: its memory, and how far the application is. ring.h says what each field means." },
	{ Py_tp_new, make },
	{ Py_tp_dealloc, dealloc },
	{ Py_tp_methods, methods },
	{ Py_tp_members, members },
	{ 0 },
};

static PyType_Spec ring_reader = {
	.name = "midstream.hardworker._ring.RingReader",
	.basicsize = sizeof(struct ring_reader),
	.flags = Py_TPFLAGS_DEFAULT,
	.slots = slots,
};

static int add_type(PyObject *module)
{
	PyObject *type = PyType_FromSpec(&ring_reader);
	int failed = !type || PyModule_AddType(module, (PyTypeObject *)type);

	Py_DecRef(type);
	return failed ? -1 : 0;
}

static PyModuleDef_Slot module_slots[] = { { Py_mod_exec, add_type }, { 0 } };

static PyModuleDef module = {
	PyModuleDef_HEAD_INIT,
	.m_name = "midstream.hardworker._ring",
	.m_slots = module_slots,
};

PyMODINIT_FUNC PyInit__ring(void)
{
	return PyModuleDef_Init(&module);
}
