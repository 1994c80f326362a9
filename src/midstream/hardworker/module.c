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
	PyObject *values; /* what a cycle gives: a slice of this view of the ring, or of a list the item at the number found */
	PyObject *kept;	  /* what else has to stay: the memory of columns and of streams */
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
	static char *names[] = { "consumer",	"pages",  "journal",  "word",  "copy_size",
				 "connections", "retain", "position", "timer", NULL };
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
					 &reader->retain, &reader->position, &reader->timer)) {
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
	reader->end = reader->committed = reader->position;
	reader->released = *reader->consumer;
	reader->seen = *reader->producer;
	reader->found = NOTHING;
	return (PyObject *)self;
}

static void dealloc(PyObject *object)
{
	struct ring_reader *self = (struct ring_reader *)object;
	PyTypeObject *type = Py_TYPE(object);

	for (int buffer = 0; buffer < BUFFERS; buffer++)
		PyBuffer_Release(&self->buffers[buffer]);
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

static int knows_streams(PyObject *self)
{
	if (!of(self)->streams)
		PyErr_SetString(PyExc_ValueError, "`streams` is to be set first");
	return of(self)->streams != NULL;
}

static PyObject *regular(PyObject *self, PyObject *size)
{
	unsigned long value = PyLong_AsUnsignedLong(size);

	return PyErr_Occurred() || !knows_streams(self) ? NULL : PyLong_FromUnsignedLongLong(reader_regular(of(self), value));
}

static PyObject *next(PyObject *self, PyObject *nothing)
{
	struct reader *reader = of(self);
	const struct record *record;
	PyObject *segment;

	(void)nothing;
	if (!reader_next(reader))
		return none();
	record = reader_record(reader, reader->position);
	segment = Py_BuildValue("(IHHKKHy#)", record->connection, record->sensor, record->port,
				(unsigned long long)record->offset, (unsigned long long)record->time, record->flags,
				(const char *)(record + 1), (Py_ssize_t)record->length);
	if (segment)
		reader_skip(reader);
	return segment;
}

static PyObject *commit(PyObject *self, PyObject *pending)
{
	Py_ssize_t length;
	char *bytes;

	if (PyBytes_AsStringAndSize(pending, &bytes, &length) || !knows_streams(self))
		return NULL;
	reader_commit(of(self), bytes, length);
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

static PyObject *prepare(PyObject *object, PyObject *arguments, PyObject *keywords)
{
	static char *names[] = { "size", "stop", "event", "period", "follow", "plan", "values", "kept", NULL };
	struct ring_reader *self = (struct ring_reader *)object;
	struct reader *reader = &self->reader;
	PyObject *values, *kept;
	Py_buffer plan;

	if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "KKKKKy*OO:prepare", names, &reader->size, &reader->stop,
					 &reader->event, &reader->period, &reader->follow, &plan, &values, &kept))
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

static PyObject *cycle(PyObject *self, PyObject *nothing)
{
	struct reader *reader = of(self);
	PyThreadState *thread;
	uint64_t start, stride;
	enum status status;

	(void)nothing;
	if (!knows_streams(self))
		return NULL;
	thread = PyEval_SaveThread();
	status = reader_cycle(reader);
	PyEval_RestoreThread(thread);
	if (status == WHOLE) {
		start = reader->start & reader->mask;
		stride = reader_stride(reader->size);
		if (fits(reader, start, stride))
			return give(reader, ((struct ring_reader *)self)->values, start, stride);
		status = UNFIT;
	} else if (status == SIGNALLED) {
		if (PyErr_CheckSignals())
			return NULL;
		reader->found = NOTHING; /* whatever the handler read */
	}
	reader->status = status;
	return none();
}

#define FIELD(name, flags) { #name, T_ULONGLONG, offsetof(struct ring_reader, reader.name), flags, NULL }

static PyMemberDef members[] = {
	FIELD(position, READONLY), FIELD(committed, READONLY), FIELD(released, READONLY), FIELD(newest, READONLY),
	FIELD(size, READONLY),	   FIELD(start, READONLY),     FIELD(found, READONLY),	  FIELD(status, READONLY),
	FIELD(streams, 0),	   FIELD(spilled, 0),	       FIELD(seen, 0),		  { 0 },
};

static PyMethodDef methods[] = {
	{ "look", look, METH_NOARGS, "What has been stored until now is what `regular` and `next` find." },
	{ "regular", regular, METH_O, "How many of the next records are each a message of this size; they are read then." },
	{ "next", next, METH_NOARGS, "The next record as the fields of a Segment, copied; None if there is none yet." },
	{ "commit", commit, METH_O, "What has been read is done with. The bytes given are of messages that are not whole." },
	{ "give_back", give_back, METH_NOARGS, "Give room back, as far as the logger has what lies in it." },
	{ "prepare", (PyCFunction)(void (*)(void))prepare, METH_VARARGS | METH_KEYWORDS, "Say what cycles are of." },
	{ "show", show, METH_VARARGS, "Let cycles give slices of this view, whose first row begins at this place." },
	{ "cycle", cycle, METH_NOARGS, "Commit, sleep, read; None, where Python has to go on, as `status` says." },
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
