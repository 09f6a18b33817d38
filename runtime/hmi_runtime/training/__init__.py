"""Training: the program that trains a Domain's layers and table, or a task's adapter.

    __main__, cli                       command line
    run, run_context, elapsed, report   one run from start to end; its folder, billed time and reports
    domain_run, adapter_run             the stages of the two kinds of run
    resumable_io, file_selection, source_files, data_reader, mounts    reading a user's data
    token_dataset, labelled_data, examples, backbone                   tokens, labels and cached features
    distillation, least_squares_init    training a Domain's layers
    adapter_training, fine_tuning, teacher, compression, peft          training or importing an adapter
    optim, checkpoint, metrics          shared by all training loops

Forbidden here: serving, placement, the file formats of tables and adapters, and writing to the catalog other
than through a run's reports.
"""
