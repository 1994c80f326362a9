// SPDX-License-Identifier: MIT
/* From records to messages: each connection's bytes are put in order, then cut as the framing says.
 *
 * The program stores every segment with its offset, also one behind a hole, and it may store a byte twice where
 * segments overlap. Here each byte is delivered once and in order. Of two versions of a byte the one is delivered
 * that Linux's TCP keeps: the one that came in order, whatever waits behind the hole that it fills.
 *
 * Bytes stay in the ring until their message is whole, and are copied once, to where the application wants them. A
 * reader that follows a killed one reads again from the first record that is needed. Only where that would hold too
 * much of the ring, parts get memory of their own. All work is linear in what arrives, however small its pieces are.
 */
#include <stdlib.h>
#include <string.h>

#include "ring.h"

#define PREFIX 4 /* bytes of the length in front of a message */
#define CHUNK 1024

struct chunk {
	struct chunk *next;
	struct part parts[CHUNK];
};

/* Let there be so many spare parts, so that nothing fails half-way. */
static int provide(struct reader *reader, uint64_t count)
{
	while (reader->spares < count) {
		struct chunk *chunk = malloc(sizeof(*chunk));

		if (!chunk)
			return -1;
		chunk->next = reader->chunks;
		reader->chunks = chunk;
		for (int i = 0; i < CHUNK; i++) {
			chunk->parts[i].next = reader->spare;
			reader->spare = &chunk->parts[i];
		}
		reader->spares += CHUNK;
	}
	return 0;
}

static void drop(struct reader *reader, struct part *part)
{
	free(part->own);
	part->next = reader->spare;
	reader->spare = part;
	reader->spares++;
}

static void drop_all(struct reader *reader, struct run *run)
{
	while (run->first) {
		struct part *part = run->first;

		run->first = part->next;
		drop(reader, part);
	}
}

/* Move over the first bytes of a run, and copy them if `to` says where. */
static void consume(struct reader *reader, struct run *run, uint64_t count, uint8_t *to)
{
	run->start += count;
	while (count) {
		struct part *part = run->first;
		uint32_t length = part->length < count ? part->length : count;

		if (to) {
			memcpy(to, part->data, length);
			to += length;
		}
		count -= length;
		part->data += length;
		part->length -= length;
		if (!part->length) {
			run->first = part->next;
			drop(reader, part);
		}
	}
}

/* Give a part memory of its own. -1 without memory. */
static int own(struct part *part)
{
	part->own = malloc(part->length);
	if (!part->own)
		return -1;
	memcpy(part->own, part->data, part->length);
	part->data = part->own;
	part->position = NOTHING;
	return 0;
}

/* Bytes that parts are made of. */
struct bytes {
	const uint8_t *data;
	uint64_t offset;
	uint64_t position; /* as in struct part */
	uint64_t base;
	int failed; /* there was no memory to keep them */
};

static struct part *part_of(struct reader *reader, struct bytes *bytes, uint64_t start, uint64_t end)
{
	struct part *part = reader->spare;

	reader->spare = part->next;
	reader->spares--;
	*part = (struct part){ .data = bytes->data + (start - bytes->offset),
			       .length = end - start,
			       .position = bytes->position,
			       .base = bytes->base };
	if (bytes->position == NOTHING && own(part))
		bytes->failed = 1;
	return part;
}

static void append(struct run *run, struct part *part)
{
	if (run->first)
		run->last->next = part;
	else
		run->first = part;
	run->last = part;
	run->end += part->length;
}

static void prepend(struct run *run, struct part *part)
{
	part->next = run->first;
	run->first = part;
	run->start -= part->length;
}

/* `other` begins where `run` ends. */
static void join(struct run *run, const struct run *other)
{
	if (!other->first)
		return;
	if (run->first)
		run->last->next = other->first;
	else
		run->first = other->first;
	run->last = other->last;
	run->end = other->end;
}

static void remove_early(struct stream *stream, uint32_t place)
{
	stream->early_count--;
	memmove(stream->early + place, stream->early + place + 1, (stream->early_count - place) * sizeof(*stream->early));
}

static void insert_early(struct stream *stream, uint32_t place, struct part *part, uint64_t start)
{
	struct run *run = stream->early + place;

	memmove(run + 1, run, (stream->early_count - place) * sizeof(*run));
	stream->early_count++;
	*run = (struct run){ .start = start, .end = start };
	append(run, part);
}

/* Room for what one segment may add: a part between any two runs, and one run. */
static int provide_early(struct reader *reader, struct stream *stream)
{
	if (stream->early_count == stream->early_room) {
		uint32_t room = stream->early_room ? 2 * stream->early_room : 8;
		struct run *early = realloc(stream->early, room * sizeof(*early));

		if (!early)
			return -1;
		stream->early = early;
		stream->early_room = room;
	}
	return provide(reader, stream->early_count + 2);
}

/* What waits behind the hole already stays, and what is missing between is added. */
static void wait(struct reader *reader, struct stream *stream, struct bytes *bytes, uint64_t end)
{
	uint64_t start = bytes->offset;
	uint32_t place = 0;

	while (place < stream->early_count && stream->early[place].end < start)
		place++;
	while (start < end) {
		struct run *run = stream->early + place, *after = stream->early + stream->early_count;

		if (run < after && run->start <= start) {
			struct run *next = run + 1;
			uint64_t stop = next < after && next->start < end ? next->start : end;

			if (start < run->end)
				start = run->end;
			if (start >= end)
				break;
			if (start < stop)
				append(run, part_of(reader, bytes, start, stop));
			if (next < after && next->start == run->end) {
				join(run, next);
				remove_early(stream, place + 1);
			}
			start = stop;
		} else {
			uint64_t stop = run < after && run->start < end ? run->start : end;
			struct part *part = part_of(reader, bytes, start, stop);

			if (run < after && run->start == stop)
				prepend(run, part);
			else
				insert_early(stream, place, part, start);
			start = stop;
		}
	}
}

/* What waited, and is now next in order. */
static void reach(struct reader *reader, struct stream *stream)
{
	struct run *ready = &stream->ready, *run = stream->early;

	while (stream->early_count && run->start <= ready->end) {
		if (run->end <= ready->end) {
			drop_all(reader, run);
		} else {
			consume(reader, run, ready->end - run->start, NULL);
			join(ready, run);
		}
		remove_early(stream, 0);
	}
}

static void order(struct reader *reader, struct open *open, struct stream *stream)
{
	struct run *ready = &stream->ready;

	if (stream->early_count) {
		reach(reader, stream);
		if (!stream->early_count)
			stream->settled = ready->end;
	}
	if (ready->start < open->next) { /* read again: it was delivered before */
		consume(reader, ready, (ready->end < open->next ? ready->end : open->next) - ready->start, NULL);
		stream->unsearched = ready->first;
	}
}

/* The bytes of a record. -1 without memory, and nothing is done. */
static int add(struct reader *reader, struct open *open, struct stream *stream, const struct record *record)
{
	struct run *ready = &stream->ready;
	struct bytes bytes = { .data = (const uint8_t *)(record + 1),
			       .offset = record->offset,
			       .position = reader->position,
			       .base = ready->end };
	uint64_t end = record->offset + record->length;

	if (!record->length || end <= ready->end)
		return 0;
	if (record->offset > ready->end ? provide_early(reader, stream) : provide(reader, 1))
		return -1;
	if (stream->anchor == NOTHING) {
		stream->anchor = reader->position;
		open->base = ready->end;
	}
	if (record->offset > ready->end) {
		wait(reader, stream, &bytes, end);
		return 0;
	}
	append(ready, part_of(reader, &bytes, ready->end, end));
	if (!stream->unsearched)
		stream->unsearched = ready->last;
	order(reader, open, stream);
	return 0;
}

static void set_state(struct reader *reader, struct open *open, enum state state)
{
	reader->unplain += (state != PLAIN) - (open->state != PLAIN);
	open->state = state;
}

static void forget_parts(struct reader *reader, struct stream *stream)
{
	drop_all(reader, &stream->ready);
	while (stream->early_count)
		drop_all(reader, &stream->early[--stream->early_count]);
	stream->anchor = NOTHING;
	stream->unsearched = NULL;
}

static uint64_t place_of(const struct reader *reader, uint32_t connection)
{
	uint64_t low = 0, high = reader->connections;

	while (low < high) {
		uint64_t middle = (low + high) / 2;

		if (reader->table[middle].connection < connection)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

struct open *reader_find(const struct reader *reader, uint32_t connection)
{
	struct open *open = reader->table + place_of(reader, connection);

	return open < reader->table + reader->connections && open->connection == connection ? open : NULL;
}

static struct stream *stream_of(const struct reader *reader, const struct open *open)
{
	return reader->streams + (open - reader->table);
}

static int make_room(struct reader *reader, uint64_t rows)
{
	struct stream *streams;
	struct open *table;

	if (rows <= reader->room)
		return 0;
	if (rows < 2 * reader->room)
		rows = 2 * reader->room;
	table = realloc(reader->table, rows * sizeof(*table));
	if (!table)
		return -1;
	reader->table = table;
	streams = realloc(reader->streams, rows * sizeof(*streams));
	if (!streams)
		return -1;
	reader->streams = streams;
	reader->room = rows;
	return 0;
}

static int open_connection(struct reader *reader, uint32_t connection)
{
	uint64_t row = place_of(reader, connection), behind = reader->connections - row;
	struct stream *stream;
	struct open *open;

	if (make_room(reader, reader->connections + 1))
		return -1;
	open = reader->table + row;
	stream = reader->streams + row;
	memmove(open + 1, open, behind * sizeof(*open));
	memmove(stream + 1, stream, behind * sizeof(*stream));
	*open = (struct open){ .connection = connection, .state = PLAIN, .end = NOTHING };
	*stream = (struct stream){ .anchor = NOTHING };
	reader->connections++;
	reader->opened++;
	return 0;
}

static void close_connection(struct reader *reader, struct open *open)
{
	struct stream *stream = stream_of(reader, open);
	uint64_t behind = reader->table + --reader->connections - open;

	if (open->state != PLAIN)
		reader->skipped += stream->ready.end - stream->ready.start;
	set_state(reader, open, PLAIN);
	forget_parts(reader, stream);
	free(stream->early);
	memmove(open, open + 1, behind * sizeof(*open));
	memmove(stream, stream + 1, behind * sizeof(*stream));
}

/* The program is gone, and with it all connections. */
void reader_abandon(struct reader *reader)
{
	reader->reset += reader->connections;
	while (reader->connections)
		close_connection(reader, reader->table + reader->connections - 1);
}

void reader_free(struct reader *reader)
{
	reader_abandon(reader);
	while (reader->chunks) {
		struct chunk *chunk = reader->chunks;

		reader->chunks = chunk->next;
		free(chunk);
	}
	free(reader->table);
	free(reader->streams);
}

/* The bytes do not follow the framing, from `next` on. */
static void give_up(struct reader *reader, struct open *open, struct stream *stream)
{
	struct run *ready = &stream->ready;

	reader->broken++;
	reader->skipped += ready->end - ready->start;
	forget_parts(reader, stream);
	open->next = ready->start = ready->end;
	set_state(reader, open, BROKEN);
}

static void skip(struct reader *reader, struct open *open, struct stream *stream, const struct record *record)
{
	uint64_t end = record->offset + record->length;

	if (end <= open->next)
		return;
	reader->skipped += end - (record->offset > open->next ? record->offset : open->next);
	open->next = stream->ready.start = stream->ready.end = end;
}

static uint64_t prefix(const struct run *run)
{
	const struct part *part = run->first;
	uint64_t length = 0;

	for (uint32_t byte = 0, at = 0; byte < PREFIX; byte++, at++) {
		while (at == part->length) {
			part = part->next;
			at = 0;
		}
		length = length << 8 | part->data[at];
	}
	return length;
}

/* The bytes of a line, once its end is there. A long line is searched once. */
static int find_line(struct stream *stream, struct message *message, uint64_t most)
{
	for (; stream->unsearched; stream->unsearched = stream->unsearched->next) {
		const struct part *part = stream->unsearched;
		const uint8_t *newline = memchr(part->data, '\n', part->length);

		message->length = stream->searched + (newline ? newline - part->data : part->length);
		if (message->length > most)
			return -1;
		if (newline)
			return 1;
		stream->searched += part->length;
	}
	return 0;
}

/* Is the next message of a stream whole? -1: never, its bytes do not follow the framing. */
static int find_message(const struct reader *reader, struct stream *stream, struct message *message)
{
	uint64_t count = stream->ready.end - stream->ready.start;

	message->before = message->behind = 0;
	switch (reader->framing) {
	case LENGTH:
		if (count < PREFIX)
			return 0;
		message->before = PREFIX;
		message->length = prefix(&stream->ready);
		return message->length > reader->size ? -1 : count - PREFIX >= message->length;
	case LINE:
		message->behind = 1;
		return find_line(stream, message, reader->size);
	default:
		message->length = reader->size;
		return count >= reader->size;
	}
}

/* What the record at `position` says of its connection. 1: there may be messages now. -1 without memory. */
static int take_in(struct reader *reader)
{
	const struct record *record = reader_record(reader, reader->position);
	struct open *open = reader_find(reader, record->connection);
	struct stream *stream;

	if (reader->position < (open ? open->from : reader->reread))
		return 0; /* an earlier reader was done with it */
	if (record->flags & RECORD_OPEN)
		return open ? 0 : open_connection(reader, record->connection);
	if (!open) { /* behind a reset */
		reader->skipped += record->length;
		return 0;
	}
	stream = stream_of(reader, open);
	if (open->state == PLAIN)
		stream->ready = (struct run){ .start = open->next, .end = open->next };
	if (open->state == BROKEN)
		skip(reader, open, stream, record);
	else if (add(reader, open, stream, record))
		return -1;
	if (record->flags & RECORD_FIN)
		open->end = record->offset + record->length;
	if (open->state == PLAIN)
		set_state(reader, open, MIDST);
	reader->row = open - reader->table;
	return 1;
}

/* From which record on does the next reader need this stream? */
static void move_anchor(struct open *open, struct stream *stream)
{
	const struct part *first = stream->ready.first;

	if (stream->early_count)
		return;
	if (!first) {
		stream->anchor = NOTHING;
	} else if (first->position != NOTHING && stream->ready.start >= stream->settled) {
		stream->anchor = first->position;
		open->base = first->base;
	}
}

/* All messages of the record that was taken in are delivered: it has been read. */
static void be_done(struct reader *reader)
{
	const struct record *record = reader_record(reader, reader->position);
	struct open *open = reader->table + reader->row;
	struct stream *stream = stream_of(reader, open);

	move_anchor(open, stream);
	if (record->flags & RECORD_RESET) {
		reader->reset++;
		close_connection(reader, open);
	} else if (stream->ready.end >= open->end) {
		reader->finished++;
		close_connection(reader, open);
	} else if (open->state == MIDST && !stream->ready.first && !stream->early_count && open->end == NOTHING &&
		   stream->ready.end >= open->next) {
		set_state(reader, open, PLAIN);
	}
	reader->is_taken = 0;
	reader_skip(reader);
}

/* Find the next message that is whole; 0 if there is none yet, -1 without memory. It is there until it is taken. */
int reader_message(struct reader *reader, struct message *message)
{
	for (;;) {
		if (reader->is_taken) {
			struct open *open = reader->table + reader->row;
			struct stream *stream = stream_of(reader, open);
			int found = open->state == BROKEN || stream->ready.start < open->next ? 0 : find_message(reader, stream, message);

			message->record = reader_record(reader, reader->position);
			message->open = open;
			if (found > 0)
				return 1;
			if (found < 0)
				give_up(reader, open, stream);
			be_done(reader);
		}
		if (!reader_next(reader))
			return 0;
		switch (take_in(reader)) {
		case 1:
			reader->is_taken = 1;
			break;
		case 0:
			reader_skip(reader);
			break;
		default:
			return -1;
		}
	}
}

/* The message that was found is delivered: to this memory. */
void reader_take(struct reader *reader, const struct message *message, uint8_t *to)
{
	struct open *open = message->open;
	struct stream *stream = stream_of(reader, open);

	consume(reader, &stream->ready, message->before, NULL);
	consume(reader, &stream->ready, message->length, to);
	consume(reader, &stream->ready, message->behind, NULL);
	open->next = stream->ready.start;
	open->sequence++;
	stream->unsearched = stream->ready.first;
	stream->searched = 0;
	reader->messages++;
	reader->bytes += message->length;
	reader->uncommitted = 1;
	if (!stream->ready.first)
		be_done(reader);
}

/* More rows than there are messages of fixed size. */
uint64_t reader_most_rows(const struct reader *reader)
{
	uint64_t bytes = reader->end - reader->position;

	for (uint64_t row = 0; reader->unplain && row < reader->connections; row++)
		if (reader->table[row].state == MIDST)
			bytes += reader->streams[row].ready.end - reader->streams[row].ready.start;
	return bytes / reader->size + 1;
}

/* All messages of fixed size, each behind a record's head of its own; how many. -1 without memory. */
int64_t reader_rows(struct reader *reader, uint8_t *rows, uint64_t room)
{
	struct message message;
	struct record head;
	uint64_t count = 0;

	for (; count < room; count++) {
		int found = reader_message(reader, &message);

		if (found < 0 && !count)
			return -1;
		if (found <= 0)
			break;
		head = *message.record;
		head.offset = message.open->next;
		head.length = message.length;
		head.flags = 0;
		memcpy(rows, &head, sizeof(head));
		reader_take(reader, &message, rows + sizeof(head));
		rows += sizeof(head) + message.length;
	}
	return count;
}

/* The position of the first record that the next reader needs; and the table says so of each connection. */
uint64_t reader_needed(struct reader *reader)
{
	uint64_t needed = reader->position;

	for (uint64_t row = 0; reader->unplain && row < reader->connections; row++) {
		struct open *open = reader->table + row;
		uint64_t anchor = reader->streams[row].anchor;

		if (open->state == PLAIN)
			continue;
		open->from = anchor == NOTHING ? reader->position : anchor;
		if (anchor == NOTHING)
			open->base = open->next;
		if (open->from < needed)
			needed = open->from;
	}
	return needed;
}

/* Do the parts of this connection hold too much of the ring? */
int reader_is_crowded(const struct reader *reader, uint64_t row)
{
	uint64_t anchor = reader->streams[row].anchor;

	return anchor != NOTHING && reader->position - anchor > reader->patience;
}

static int own_all(struct run *run)
{
	for (struct part *part = run->first; part; part = part->next)
		if (part->position != NOTHING && own(part))
			return -1;
	return 0;
}

/* The parts that hold too much of the ring are kept elsewhere now. -1 without memory for all of them. */
int reader_keep(struct reader *reader)
{
	for (uint64_t row = 0; row < reader->connections; row++) {
		struct stream *stream = reader->streams + row;
		int failed;

		if (!reader_is_crowded(reader, row))
			continue;
		failed = own_all(&stream->ready);
		for (uint32_t early = 0; early < stream->early_count; early++)
			failed |= own_all(stream->early + early);
		if (failed)
			return -1;
		stream->anchor = NOTHING;
	}
	return 0;
}

/* The connections as the last reader left them. What is in the ring is read again, from `position` on. */
int reader_restore(struct reader *reader)
{
	uint64_t generation = *(const uint64_t *)reader->journal;
	const struct copy *copy = (const void *)(reader->journal + sizeof(generation) + (generation & 1) * reader->copy_size);

	if (!generation)
		return 0;
	if (make_room(reader, copy->count))
		return -1;
	memcpy(reader->table, copy->table, copy->count * sizeof(*copy->table));
	for (uint64_t row = 0; row < copy->count; row++) {
		struct open *open = reader->table + row;
		uint64_t start = open->state == MIDST && open->base < open->next ? open->base : open->next;

		if (open->state == PLAIN)
			open->from = copy->read;
		reader->unplain += open->state != PLAIN;
		reader->streams[row] =
			(struct stream){ .anchor = NOTHING, .ready = { .start = start, .end = start } };
	}
	reader->connections = copy->count;
	reader->position = copy->position;
	reader->reread = copy->read;
	return 0;
}

/* A part that was kept elsewhere: to be told from the newest to the oldest, of which none replaces a newer one. */
int reader_restore_kept(struct reader *reader, uint32_t connection, uint64_t offset, const uint8_t *data, uint32_t length)
{
	struct open *open = reader_find(reader, connection);
	struct stream *stream = open ? stream_of(reader, open) : NULL;
	struct bytes bytes = { .data = data, .offset = offset, .position = NOTHING };

	if (!open || open->state != MIDST || offset + length <= stream->ready.end)
		return 0;
	if (offset < stream->ready.end) {
		bytes.data += stream->ready.end - offset;
		bytes.offset = stream->ready.end;
	}
	if (provide_early(reader, stream))
		return -1;
	wait(reader, stream, &bytes, offset + length);
	return bytes.failed ? -1 : 0;
}

/* That was all. */
void reader_restored(struct reader *reader)
{
	for (uint64_t row = 0; row < reader->connections; row++) {
		struct stream *stream = reader->streams + row;

		if (reader->table[row].state == MIDST)
			order(reader, reader->table + row, stream);
		stream->unsearched = stream->ready.first;
	}
}
